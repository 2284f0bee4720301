"""A small real HTTP server that answers as an OCI registry does to who reads: manifests and blobs by digest."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"


class ImageRegistry:
    """`place` is host:port; `content` what is served, by digest: change it to tamper."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.place = ""

    def put(self, files: Mapping[str, bytes], labels: Mapping[str, str]) -> str:
        """Add an image whose last layer holds `files` (by path in the image) and return its digest."""
        layers = [self._blob(archive({"etc/passwd": b"root"})), self._blob(archive(files))]
        config = self._blob(json.dumps({"config": {"Labels": dict(labels)}}).encode())
        manifest = {"mediaType": MANIFEST, "config": config, "layers": layers}
        return str(self._blob(json.dumps(manifest).encode())["digest"])

    def _blob(self, data: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self.content[digest] = data
        return {"digest": digest, "size": len(data)}


def archive(files: Mapping[str, bytes]) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as packed:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            packed.addfile(entry, io.BytesIO(data))
    return target.getvalue()


@contextmanager
def image_registry() -> Generator[ImageRegistry]:
    registry = ImageRegistry()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            data = registry.content.get(self.path.rpartition("/")[2])
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Type", MANIFEST)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    registry.place = f"127.0.0.1:{server.server_address[1]}"
    yield registry
    server.shutdown()
    server.server_close()
