"""A real bento in a process of its own: start, refuse to start, answer, drain, and the same under `bentoml serve`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import psutil
import pytest

from ci.build import package, serve_command, store_lock
from tests.bentos import artifacts
from tests.conftest import make_workspace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ROW = {"rows": [[0.5, -0.5, 1.0, 0.0, 0.25, -1.0]]}


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bento of tumor, built from this checkout's code."""
    folder = tmp_path_factory.mktemp("bento")
    workspace = make_workspace(folder / "repository")
    with store_lock(workspace) as scratch:
        return package(workspace, "tumor", artifacts.table_model(folder / "model"), scratch).path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process; `stderr` is what it has said."""

    def __init__(self, command: Sequence[str], port: int, log: Path, **env: str) -> None:
        self.port, self.log = port, log
        settings = {"WHARF_VERSION": "3", "WHARF_ENVIRONMENT": "dev", "BENTOML_HOME": str(log.parent / "home"), **env}
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                command, env={**os.environ, **settings}, stdout=stream, stderr=stream, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ask(self, path: str, body: bytes | None = None, timeout: float = 30) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET" if body is None else "POST", path, body)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def wait_ready(self, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            assert self.process.poll() is None, f"it ended with {self.process.returncode}: {self.said}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self.ask("/readyz")[0] == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(f"not ready: {self.said}")

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def serving(bento: Path, log: Path, command: Sequence[str] | None = None, **env: str) -> Generator[Server]:
    port = free_port()
    words = serve_command(bento, port) if command is None else [*command, "--port", str(port)]
    server = Server(words, port, log, **env)
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def running(bento: Path, tmp_path: Path) -> Generator[Server]:
    sha256 = json.loads((bento / "src" / "model" / "serving.json").read_text())["sha256"]
    env = {"WHARF_ARTIFACT_SHA256": f"sha256:{sha256}", "WHARF_PREDICTION_LOG": str(tmp_path / "predictions")}
    with serving(bento, tmp_path / "log", **env) as server:
        server.wait_ready()
        yield server


def test_it_answers_refuses_and_ends_with_zero(running: Server, tmp_path: Path) -> None:
    status, body = running.ask("/predict", json.dumps(ROW).encode())
    assert status == 200 and json.loads(body)["version"] == 3
    assert running.ask("/livez")[0] == 200
    assert b"wharf_requests_total{" in running.ask("/metrics")[1]
    assert b"swagger-ui" in running.ask("/")[1]
    assert "/predict" in json.loads(running.ask("/docs.json")[1])["paths"]
    assert running.ask("/static_content/swagger-ui.css")[0] == 200

    # Bad input of every kind is an answer and leaves nothing on standard error.
    for bad, expected in [(b"{", 400), (b'{"rows": [[1]]}', 422), (b'{"rows": [["a"]]}', 422), (b"\x00" * 100, 400)]:
        assert running.ask("/predict", bad)[0] == expected
    assert running.ask("/nothing")[0] == 404

    # 10 MB of JSON is refused without being kept.
    process = psutil.Process(running.process.pid)
    before = process.memory_info().rss
    large = json.dumps({"rows": [[1.5] * 6] * 300_000}).encode()
    assert len(large) > 8_000_000 and running.ask("/predict", large)[0] == 413
    assert process.memory_info().rss - before < 8_000_000
    assert process.children(recursive=True) == [], "one process serves"
    assert running.ask("/predict", json.dumps(ROW).encode())[0] == 200

    assert running.end() == 0
    assert running.said == ""
    (file,) = (tmp_path / "predictions").iterdir()
    statuses = [json.loads(line)["status"] for line in file.read_text().splitlines()]
    assert statuses == [200, 400, 422, 422, 400, 413, 200]


def test_chunked_10_mb_is_refused_too(running: Server) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = b" " * 65536
        for _ in range(160):
            connection.sendall(b"10000\r\n" + chunk + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")
    assert running.ask("/predict", json.dumps(ROW).encode())[0] == 200


def test_a_request_in_flight_is_answered_after_sigterm(running: Server) -> None:
    body = json.dumps(ROW).encode()
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body[:10])
        time.sleep(0.3)
        running.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert running.process.poll() is None, "it waits for the request"
        with pytest.raises(ConnectionRefusedError):
            running.ask("/readyz")
        connection.sendall(body[10:])
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
    assert running.process.wait(30) == 0


def damage(bento: Path, target: Path, how: str) -> Path:
    """Return a copy of the bento whose artifact is flipped or missing."""
    shutil.copytree(bento, target)
    artifact = target / "src" / "model" / "artifact.onnx"
    if how == "missing":
        artifact.unlink()
    else:
        content = bytearray(artifact.read_bytes())
        content[len(content) // 2] ^= 1
        artifact.write_bytes(content)
    return target


@pytest.mark.parametrize(("how", "said"), [("flipped", "refused to load it"), ("missing", "No such file")])
def test_a_damaged_artifact_ends_the_process_with_one_line(bento: Path, tmp_path: Path, how: str, said: str) -> None:
    with serving(damage(bento, tmp_path / "bento", how), tmp_path / "log") as server:
        assert server.process.wait(120) == 3
        assert server.said.count("\n") == 1 and server.said.startswith("not serving tumor: ") and said in server.said


def test_the_sha256_of_the_release_decides(bento: Path, tmp_path: Path) -> None:
    with serving(bento, tmp_path / "log", WHARF_ARTIFACT_SHA256="0" * 64) as server:
        assert server.process.wait(120) == 3 and "the release says 0000000000000000" in server.said


def test_a_taken_port_is_one_line(bento: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(serve_command(bento, port), port, tmp_path / "log")
        assert server.process.wait(60) == 4
        assert server.said == f"cannot listen on 127.0.0.1:{port}: Address already in use\n"


def bentoml_serve(bento: Path) -> list[str]:
    return [sys.executable, "-m", "bentoml", "serve", str(bento), "--host", "127.0.0.1", "--api-workers", "1"]


def test_bentoml_serve_serves_the_same(bento: Path, tmp_path: Path) -> None:
    env = {"WHARF_PREDICTION_LOG": str(tmp_path / "predictions"), "BENTOML_DO_NOT_TRACK": "true"}
    with serving(bento, tmp_path / "log", bentoml_serve(bento), **env) as server:
        server.wait_ready()
        status, body = server.ask("/predict", json.dumps(ROW).encode())
        assert status == 200 and json.loads(body)["predictions"] in (["benign"], ["malignant"])
        assert server.ask("/predict", b"{")[0] == 400
        text = server.ask("/metrics")[1].decode()
        assert 'wharf_requests_total{environment="dev",model="tumor",status="200",version="3"} 1.0' in text
        assert "bentoml_service_request_total" in text, "BentoML's own metrics stand beside"
        assert "/predict" in json.loads(server.ask("/docs.json")[1])["paths"]
        assert server.ask("/livez")[0] == 200 and b"swagger-ui" in server.ask("/")[1]
        assert "Traceback" not in server.said
        server.end()


def test_bentoml_serve_never_becomes_ready_with_a_damaged_artifact(bento: Path, tmp_path: Path) -> None:
    damaged = damage(bento, tmp_path / "bento", "flipped")
    with serving(damaged, tmp_path / "log", bentoml_serve(damaged), BENTOML_DO_NOT_TRACK="true") as server:
        until = time.monotonic() + 120
        while "refused to load it" not in server.said:
            assert time.monotonic() < until, server.said
            time.sleep(0.1)
        # BentoML starts the worker again and again, and its arbiter holds the port: a probe gets no answer.
        for _ in range(5):
            with contextlib.suppress(OSError, http.client.HTTPException):
                assert server.ask("/readyz", timeout=1)[0] != 200
        assert "Traceback" not in server.said
