"""The image registry of the node, and the one image that a node needs before any pod can run: the pause program.

Every pod has a pause container, which holds its network. It is an image like all others, so that it comes again when
the kubelet removed it from a full disk.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any

from ci.cluster.node.layout import REGISTRY_NAME
from ci.files import sha256_bytes
from ci.images.registry import CONFIG, LAYER, MANIFEST, Registry


def push_pause(registry: str, program: Path, architecture: str) -> str:
    """Push the image that holds only `program` to `registry` (host:port) and return its reference by digest.

    The same program gives the same digest. Raises Unavailable when the registry does not answer or refuses.
    """
    layer, config, manifest = image(program.read_bytes(), architecture)
    target = Registry(registry)
    for blob in (layer, config):
        target.put_blob("pause", f"sha256:{sha256_bytes(blob)}", blob, len(blob))
    target.put_manifest("pause", "latest", manifest)
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
            "mediaType": MANIFEST,
            "config": _descriptor(CONFIG, config),
            "layers": [_descriptor(LAYER, layer)],
        }
    )
    return layer, config, manifest


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _descriptor(kind: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{sha256_bytes(content)}", "size": len(content)}
