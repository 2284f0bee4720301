"""Send one HTTP/1.1 request over and over on keep-alive connections: a program of its own, so that measuring does not
slow what is measured.

`python -m tests.bench.load URL BODY_FILE CONNECTIONS SECONDS` prints requests/s, p50 and p99 in milliseconds, and the
number of answers that were not 200, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import uvloop


class Connection(asyncio.Protocol):
    """Sends the next request when the answer to the last is complete."""

    def __init__(self, request: bytes, results: list[float], until: float) -> None:
        self.request, self.results, self.until = request, results, until
        self.failed, self.done = 0, asyncio.get_running_loop().create_future()
        self.buffer, self.wanted = bytearray(), -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.begun = time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if self.wanted < 0:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = bytes(self.buffer[:end]).lower()
            start = head.find(b"content-length:") + 15
            self.wanted = end + 4 + int(head[start:].split(b"\r\n", 1)[0])
        if len(self.buffer) < self.wanted:
            return
        now = time.perf_counter()
        self.results.append(now - self.begun)
        self.failed += not self.buffer.startswith(b"HTTP/1.1 200")
        del self.buffer[:]
        self.wanted = -1
        if now < self.until:
            self.send()
        elif not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(exc or ConnectionError("the server closed the connection"))


async def load(url: str, body: bytes, connections: int, seconds: float) -> dict[str, float]:
    """Return what `connections` connections saw in `seconds`."""
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    loop, results = asyncio.get_running_loop(), list[float]()
    begun = time.perf_counter()
    opened: list[Connection] = []
    for _ in range(connections):
        made = loop.create_connection(lambda: Connection(request, results, begun + seconds), parts.hostname, parts.port)
        opened.append((await made)[1])
    await asyncio.gather(*(connection.done for connection in opened))
    took = time.perf_counter() - begun
    for connection in opened:
        connection.transport.close()
    results.sort()
    return {
        "rps": len(results) / took,
        "p50": results[len(results) // 2] * 1000,
        "p99": results[min(len(results) - 1, int(len(results) * 0.99))] * 1000,
        "failed": sum(connection.failed for connection in opened),
    }


if __name__ == "__main__":
    url, file, connections, seconds = sys.argv[1:]
    print(json.dumps(uvloop.run(load(url, Path(file).read_bytes(), int(connections), float(seconds)))))
