"""The pause image: the same program gives the same digest, and a push sends what the registry lacks."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from ci.cluster.node import registry
from ci.errors import Unavailable
from ci.files import sha256_bytes


class Double(BaseHTTPRequestHandler):
    """As much of the registry's protocol as a push speaks."""

    stored: dict[str, bytes]
    refuses = False

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, location: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if location:
            self.send_header("Location", f"http://{self.headers['Host']}{location}")
        self.end_headers()

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.rsplit("/", 1)[-1] in self.stored else 404)

    def do_POST(self) -> None:
        self._body()
        self._answer(507 if self.refuses else 202, "/v2/pause/blobs/uploads/1?_state=x")

    def do_PUT(self) -> None:
        body = self._body()
        name = self.path.rsplit("digest=", 1)[-1] if "digest=" in self.path else f"sha256:{sha256_bytes(body)}"
        assert name == f"sha256:{sha256_bytes(body)}"
        self.stored[name] = body
        self._answer(201)


@pytest.fixture
def double() -> Iterator[tuple[str, type[Double]]]:
    handler = type("Handler", (Double,), {"stored": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_address[1]}", handler
    server.shutdown()
    server.server_close()


def test_the_image_holds_the_program_and_its_digests_fit() -> None:
    layer, config, manifest = registry.image(b"program", "amd64")
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as tar:
        (entry,) = tar.getmembers()
        content = tar.extractfile(entry)
        assert content is not None
        assert (entry.name, entry.mode, content.read()) == ("pause", 0o755, b"program")
    read = json.loads(manifest)
    assert read["layers"][0]["digest"] == f"sha256:{sha256_bytes(layer)}"
    assert read["config"]["digest"] == f"sha256:{sha256_bytes(config)}"
    assert json.loads(config)["rootfs"]["diff_ids"] == [f"sha256:{sha256_bytes(gzip.decompress(layer))}"]


def test_the_same_program_gives_the_same_image() -> None:
    assert registry.image(b"program", "amd64") == registry.image(b"program", "amd64")
    assert registry.image(b"other", "amd64")[2] != registry.image(b"program", "amd64")[2]


def test_a_push_stores_blobs_and_manifest(double: tuple[str, type[Double]], tmp_path: Path) -> None:
    address, handler = double
    program = tmp_path / "pause"
    program.write_bytes(b"program")
    reference = registry.push_pause(address, program, "amd64")
    assert len(handler.stored) == 3
    assert reference.startswith("wharf.local/pause@sha256:")
    assert reference.split("@")[1] in handler.stored
    assert registry.push_pause(address, program, "amd64") == reference


def test_a_refusal_is_said_in_one_line(double: tuple[str, type[Double]], tmp_path: Path) -> None:
    address, handler = double
    handler.refuses = True
    (tmp_path / "pause").write_bytes(b"program")
    with pytest.raises(Unavailable, match="refused POST /v2/pause/blobs/uploads/: 507"):
        registry.push_pause(address, tmp_path / "pause", "amd64")


def test_a_registry_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "pause").write_bytes(b"program")
    with pytest.raises(Unavailable, match=r"the registry at 127\.0\.0\.1:1 does not answer"):
        registry.push_pause("127.0.0.1:1", tmp_path / "pause", "amd64")
