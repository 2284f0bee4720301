"""The counting of lost requests, without a cluster: a tool that misses one would make the tests on the cluster lie."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.cluster.traffic import SCRIPT, Counts


class Model(BaseHTTPRequestHandler):
    """Answers as a model does, but fails each request whose number is a multiple of `fails_each`."""

    protocol_version = "HTTP/1.1"
    fails_each = 0
    seen = 0
    closes = False  # the connection after each answer, without having said so

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        kind = type(self)
        kind.seen += 1
        broken = kind.fails_each and kind.seen % kind.fails_each == 0
        content = b"{}" if broken else b'{"version": 3}'
        self.send_response(500 if broken else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.close_connection = self.close_connection or kind.closes

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def model(fails_each: int = 0, closes: bool = False) -> Iterator[str]:
    handler = type("ThisModel", (Model,), {"fails_each": fails_each, "closes": closes})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/predict"
    finally:
        server.shutdown()
        server.server_close()


def counted(url: str) -> Counts:
    """Let the script work for a second and a bit, and return its last line."""
    command = [sys.executable, "-u", "-c", SCRIPT.read_text(), url, "100"]
    with subprocess.Popen(command, env={**os.environ, "BODY": "{}"}, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        lines = [running.stdout.readline()]
        running.send_signal(signal.SIGTERM)
        lines += running.stdout.readlines()
    return Counts(**json.loads(lines[-1]))


def test_it_counts_answers_by_version_over_both_kinds_of_connections() -> None:
    with model() as url:
        counts = counted(url)
    counts.require_no_loss()
    assert counts.versions == {"3": counts.ok}
    assert counts.ok > 50
    assert 4 < counts.opened < counts.ok  # half of the workers keep theirs
    assert counts.longest_gap_s < 1


def test_it_counts_an_answer_that_is_an_error() -> None:
    with model(fails_each=10) as url:
        counts = counted(url)
    assert counts.failed >= counts.ok // 10 - 1 > 0
    assert "status 500" in counts.faults[0]


def test_a_connection_that_was_closed_between_requests_is_no_loss() -> None:
    with model(closes=True) as url:
        counted(url).require_no_loss()


def test_nobody_listening_is_a_loss() -> None:
    with model() as url:
        pass
    counts = counted(url)
    assert counts.ok == 0
    assert counts.failed > 50
    assert "ConnectionRefusedError" in counts.faults[0]
