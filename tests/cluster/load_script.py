"""Runs in a pod: sends requests at a steady rate and writes each second what became of all of them, as one JSON line.

    python3 -c SCRIPT URL RATE        with the body of a request in the variable BODY

Half of its connections are kept open, the other half are opened anew for each request. A request that fails is not
tried again. Nothing but the standard library: it runs in any image that has Python.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import sys
import threading
import time
from urllib.parse import urlsplit

WORKERS = 8
TIMEOUT_S = 10.0
KEPT_FAULTS = 20  # that are written out; all are counted


class Tally:
    """What became of the requests so far."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begun = self.last_ok = time.monotonic()
        self.ok = self.failed = self.opened = 0
        self.longest_gap = 0.0
        self.versions: dict[str, int] = {}
        self.faults: list[str] = []

    def answered(self, version: str) -> None:
        with self.lock:
            now = time.monotonic()
            self.longest_gap, self.last_ok = max(self.longest_gap, now - self.last_ok), now
            self.ok += 1
            self.versions[version] = self.versions.get(version, 0) + 1

    def lost(self, why: str, kept_open: bool) -> None:
        with self.lock:
            self.failed += 1
            if len(self.faults) < KEPT_FAULTS:
                kind = "kept open" if kept_open else "new"
                clock = time.strftime("%H:%M:%S")
                self.faults.append(f"{clock} (second {time.monotonic() - self.begun:.1f}, {kind} connection): {why}")

    def line(self) -> str:
        with self.lock:
            now = time.monotonic()
            return json.dumps(
                {
                    "seconds": round(now - self.begun, 2),
                    "ok": self.ok,
                    "failed": self.failed,
                    "opened": self.opened,
                    "longest_gap_s": round(max(self.longest_gap, now - self.last_ok), 3),
                    "versions": self.versions,
                    "faults": self.faults,
                }
            )


class Client:
    """Sends one request after the other, on a connection that is kept open or on a new one each time."""

    def __init__(self, url: str, body: bytes, keep: bool, tally: Tally) -> None:
        parts = urlsplit(url)
        self.host, self.port, self.path = parts.hostname or "", parts.port or 80, parts.path
        self.body, self.keep, self.tally = body, keep, tally
        self.connection: http.client.HTTPConnection | None = None
        self.headers = {"Content-Type": "application/json", "Connection": "keep-alive" if keep else "close"}

    def send(self) -> None:
        """Send one request and count what became of it."""
        self._drop_if_closed()
        kept = self.connection is not None
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)
                with self.tally.lock:
                    self.tally.opened += 1
            self.connection.request("POST", self.path, self.body, self.headers)
            response = self.connection.getresponse()
            content = response.read()
            if response.status != 200:
                raise http.client.HTTPException(f"status {response.status}: {content[:120]!r}")
            version = str(json.loads(content)["version"])
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            self.tally.lost(f"{type(error).__name__}: {error}", kept)
            self._close()
            return
        self.tally.answered(version)
        if not self.keep or response.will_close:
            self._close()

    def _drop_if_closed(self) -> None:
        """Forget a connection that the server has closed while nothing was asked, as every HTTP client does."""
        socket = self.connection.sock if self.connection else None
        if self.connection and (socket is None or select.select([socket], [], [], 0)[0]):
            self._close()

    def _close(self) -> None:
        if self.connection:
            self.connection.close()
        self.connection = None


def work(client: Client, first: float, interval: float, ending: threading.Event) -> None:
    """Send a request each `interval` seconds from `first` on; what a slow answer delays is not made up for."""
    due = first
    while not ending.wait(max(0.0, due - time.monotonic())):
        client.send()
        due = max(due + interval, time.monotonic())


def main() -> int:
    """Work until SIGTERM."""
    url, rate = sys.argv[1], float(sys.argv[2])
    body, tally, ending = os.environ["BODY"].encode(), Tally(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ending.set())
    interval = WORKERS / rate
    for number in range(WORKERS):
        client = Client(url, body, keep=number % 2 == 0, tally=tally)
        first = time.monotonic() + number / rate
        threading.Thread(target=work, args=(client, first, interval, ending), daemon=True).start()
    while not ending.wait(1.0):
        print(tally.line(), flush=True)
    print(tally.line(), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
