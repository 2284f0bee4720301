"""Traffic stays on this machine and bounded, and repeats what the service asks to repeat."""

from __future__ import annotations

import json
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from ci.demo import Change, shift
from ci.errors import Mistake, Unavailable
from ci.live import traffic
from ci.live.traffic import batches, send
from ci.workspace import Workspace, load_spec


class _Service(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plan: list[int]
    bodies: list[dict[str, Any]]
    hang_up = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status = type(self).plan.pop(0) if type(self).plan else 200
        if status == 200:
            type(self).bodies.append(body)
        answer = json.dumps({"request_id": f"id{len(type(self).bodies)}", "error": "rows: is empty"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        if status == 503:
            self.send_header("Retry-After", "0.05")
        self.end_headers()
        self.wfile.write(answer)
        self.close_connection = self.close_connection or type(self).hang_up

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Generator[tuple[str, type[_Service]]]:
    handler = type("Service", (_Service,), {"plan": [], "bodies": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("hang_up", [False, True])
def test_every_body_is_sent_in_order(service: tuple[str, type[_Service]], hang_up: bool) -> None:
    url, handler = service
    handler.hang_up = hang_up
    sent = send(url, [{"rows": [[i]]} for i in range(5)])
    assert sent.ids == ["id1", "id2", "id3", "id4", "id5"]
    assert [body["rows"][0][0] for body in handler.bodies] == [0, 1, 2, 3, 4]


def test_not_now_is_repeated(service: tuple[str, type[_Service]]) -> None:
    url, handler = service
    handler.plan += [503, 503, 200]
    assert send(url, [{"rows": [[1]]}]).answered == 1


def test_a_refusal_stops_it(service: tuple[str, type[_Service]]) -> None:
    url, handler = service
    handler.plan += [422]
    with pytest.raises(Unavailable, match="the service answered 422: rows: is empty"):
        send(url, [{"rows": []}])


def test_time_is_bounded(service: tuple[str, type[_Service]]) -> None:
    url, handler = service
    handler.plan += [503] * 1000
    sent = send(url, [{"rows": [[1]]}] * 50, max_seconds=0.3)
    assert sent.answered == 0 and len(sent.ids) == 50 and sent.seconds < 5


@pytest.mark.parametrize("url", ["http://example.com", "https://127.0.0.1:1", "http://10.0.0.1:80", "nonsense"])
def test_only_this_machine(url: str) -> None:
    with pytest.raises(Mistake, match="traffic goes to services on this machine only"):
        send(url, [{}])


def test_count_is_bounded() -> None:
    with pytest.raises(Mistake, match="2001 requests are more than the 2000"):
        send("http://127.0.0.1:1", [{}] * (traffic.MAX_REQUESTS + 1))


def test_nobody_there() -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        send("http://127.0.0.1:9", [{}])


def test_batches() -> None:
    assert batches([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_shift_changes_the_named_columns_only(workspace: Workspace) -> None:
    spec = load_spec(workspace, "tumor")
    rows = np.arange(60.0).reshape(2, 30).tolist()
    rows[0][6] = None
    found = shift(spec, rows, Change("concavity", 0.5, ""))
    names = spec.data.names()
    for name, before, after in zip(names * 2, rows[0] + rows[1], found[0] + found[1], strict=True):
        assert after == (before * 0.5 if "concavity" in name and before is not None else before)
