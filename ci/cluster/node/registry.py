"""The image registry of the node, and the one image that a node needs before any pod can run: the pause program.

Every pod has a pause container, which holds its network. It is an image like all others, so that it comes again when
the kubelet removed it from a full disk.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import tarfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ci.cluster.node.layout import REGISTRY_NAME
from ci.errors import Unavailable
from ci.files import sha256_bytes

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_TIMEOUT_S = 30.0


def push_pause(registry: str, program: Path, architecture: str) -> str:
    """Push the image that holds only `program` to `registry` (host:port) and return its reference by digest.

    The same program gives the same digest. Raises Unavailable when the registry refuses.
    """
    layer, config, manifest = image(program.read_bytes(), architecture)
    for blob in (layer, config):
        _push_blob(registry, "pause", blob)
    _send(registry, "PUT", "/v2/pause/manifests/latest", manifest, {"Content-Type": _MANIFEST})
    return reference(manifest)


def reference(manifest: bytes) -> str:
    """Return how pods name the image with this manifest."""
    return f"{REGISTRY_NAME}/pause@sha256:{sha256_bytes(manifest)}"


def image(program: bytes, architecture: str) -> tuple[bytes, bytes, bytes]:
    """Return the layer, configuration and manifest of an image that runs `program` as nobody."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        entry = tarfile.TarInfo("pause")
        entry.size, entry.mode = len(program), 0o755
        tar.addfile(entry, io.BytesIO(program))
    layer = gzip.compress(archive.getvalue(), mtime=0)
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(archive.getvalue()).hexdigest()}"]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [_descriptor(_LAYER, layer)],
        }
    )
    return layer, config, manifest


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256_bytes(content)}", "size": len(content)}


def _push_blob(registry: str, repository: str, blob: bytes) -> None:
    digest = f"sha256:{sha256_bytes(blob)}"
    if _send(registry, "HEAD", f"/v2/{repository}/blobs/{digest}", None, {}, missing_is_fine=True) is not None:
        return
    location = _send(registry, "POST", f"/v2/{repository}/blobs/uploads/", b"", {})
    assert location is not None
    parts = urlsplit(location)
    query = f"{parts.query}&digest={digest}" if parts.query else f"digest={digest}"
    _send(registry, "PUT", f"{parts.path}?{query}", blob, {"Content-Type": "application/octet-stream"})


def _send(
    registry: str, method: str, path: str, body: bytes | None, headers: dict[str, str], *, missing_is_fine: bool = False
) -> str | None:
    """Send one request; return the address that the answer points to, None for a missing thing that may be missing."""
    connection = http.client.HTTPConnection(registry, timeout=_TIMEOUT_S)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        text = answer.read()
    except OSError as error:
        raise Unavailable(f"the registry at {registry} does not answer: {error}") from None
    finally:
        connection.close()
    if answer.status == 404 and missing_is_fine:
        return None
    if answer.status >= 300:
        raise Unavailable(f"the registry at {registry} refused {method} {path}: {answer.status} {text[:200].decode()}")
    return answer.headers.get("Location", "")
