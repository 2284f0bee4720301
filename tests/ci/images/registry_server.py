"""A small OCI registry in memory: what a push, a mount and a pull need, with logins as real ones ask for them."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import uuid
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN, BASIC = "secret-token", "dXNlcjpwYXNz"  # user:pass


@dataclass
class RegistryServer:
    """What it holds, and what was asked of it."""

    port: int = 0
    login: str = ""  # "", "basic" or "bearer"
    mounts: bool = True
    blobs: dict[str, set[str]] = field(default_factory=dict[str, set[str]])  # digests by repository
    content: dict[str, bytes] = field(default_factory=dict[str, bytes])  # by digest, of all repositories
    manifests: dict[tuple[str, str], tuple[bytes, str]] = field(
        default_factory=dict[tuple[str, str], tuple[bytes, str]]
    )
    received: int = 0  # bytes of uploads
    absolute: bool = False  # uploads go to an address with scheme and host
    logins: list[str] = field(default_factory=list[str])  # that its realm was given
    fail: int = 0  # answer everything with this status

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def manifest(self, repository: str, reference: str) -> dict[str, Any]:
        return json.loads(self.manifests[repository, reference][0])

    def config(self, repository: str, reference: str) -> dict[str, Any]:
        return json.loads(self.content[self.manifest(repository, reference)["config"]["digest"]])

    def add(self, repository: str, content: bytes) -> dict[str, Any]:
        """Store a blob and return its descriptor."""
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        self.content[digest] = content
        self.blobs.setdefault(repository, set()).add(digest)
        return {"digest": digest, "size": len(content)}

    def add_manifest(self, repository: str, tag: str, manifest: dict[str, Any]) -> str:
        raw = json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        for reference in (tag, digest):
            self.manifests[repository, reference] = (raw, manifest["mediaType"])
        return digest


@contextmanager
def registry_server() -> Generator[RegistryServer]:
    state = RegistryServer()
    uploads: dict[str, bytearray] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") == "chunked":
                data = bytearray()
                while size := int(self.rfile.readline(), 16):
                    data += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return bytes(data)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def handle_request(self) -> None:
            url, data = urlsplit(self.path), self.body()
            query = {key: values[0] for key, values in parse_qs(url.query).items()}
            given = self.headers.get("Authorization", "")
            if url.path == "/token":
                state.logins.append(given.removeprefix("Basic "))
                fine = given == f"Basic {BASIC}"
                self.answer(200 if fine else 401, json.dumps({"token": TOKEN}).encode())
            elif state.login and given != {"basic": f"Basic {BASIC}", "bearer": f"Bearer {TOKEN}"}[state.login]:
                realm = f'Bearer realm="http://{state.place}/token",service="here",scope="pull,push"'
                self.answer(401, b'{"errors": [{"code": "UNAUTHORIZED", "message": "log in"}]}',
                            WWW_Authenticate="Basic realm=x" if state.login == "basic" else realm)  # fmt: skip
            elif state.fail:
                self.answer(state.fail, b'{"errors": [{"code": "DENIED", "message": "no room"}]}')
            else:
                self.serve(url.path, query, data)

        def serve(self, path: str, query: dict[str, str], data: bytes) -> None:
            if path == "/v2/":
                return self.answer(200)
            found = re.fullmatch(r"/v2/(.+?)/(manifests|blobs)/(uploads/)?(.*)", path)
            assert found, path
            repository, kind, upload, reference = found.groups()
            if kind == "manifests":
                return self.manifest(repository, reference, data)
            if not upload:
                known = reference in state.blobs.get(repository, ())
                return self.answer(200 if known else 404, state.content[reference] if known else b"")
            if self.command == "POST":
                wanted = query.get("mount", "")
                if state.mounts and wanted and wanted in state.blobs.get(query["from"], ()):
                    state.blobs.setdefault(repository, set()).add(wanted)
                    return self.answer(201)
                name = uuid.uuid4().hex
                uploads[name] = bytearray()
                where = f"http://{state.place}" if state.absolute else ""
                return self.answer(202, Location=f"{where}/v2/{repository}/blobs/uploads/{name}")
            uploads[reference] += data
            state.received += len(data)
            if self.command == "PATCH":
                return self.answer(202, Location=f"/v2/{repository}/blobs/uploads/{reference}")
            content = bytes(uploads.pop(reference))
            if f"sha256:{hashlib.sha256(content).hexdigest()}" != query["digest"]:
                return self.answer(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "other content"}]}')
            state.add(repository, content)
            return self.answer(201)

        def manifest(self, repository: str, reference: str, data: bytes) -> None:
            if self.command == "PUT":
                manifest = json.loads(data)
                lacking = [
                    part["digest"]
                    for part in [manifest["config"], *manifest["layers"]]
                    if part["digest"] not in state.blobs.get(repository, ())
                ]
                if lacking:  # as real registries do
                    return self.answer(
                        400, b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown"}]}'
                    )
                digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
                for each in (reference, digest):
                    state.manifests[repository, each] = (data, self.headers["Content-Type"])
                state.received += len(data)
                return self.answer(201)
            raw, kind = state.manifests.get((repository, reference), (b"", ""))
            digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
            return self.answer(200, raw, Content_Type=kind, Docker_Content_Digest=digest) if raw else self.answer(404)

        do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = handle_request

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
