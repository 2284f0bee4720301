"""FakeService, a stand-in for a bento: a real one takes seconds and 300 MB to start, and what the agent sees of it is
a command, a port, `/livez`, `/readyz` and `/predict`. The real one is served in the end-to-end test.

Its behaviour comes from the manifest's variables: FAKE_READY=no never becomes Ready, FAKE_EXIT=3 ends with that code
at once, FAKE_START=0.5 takes that long to listen; SIGUSR1 makes it not Ready. Only the standard library: it starts in
a tenth of a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

REQUEST_SECONDS = 0.02  # so that a process always dies with requests under way


async def serve(port: int) -> None:
    version = int(os.environ["WHARF_VERSION"])
    if code := os.environ.get("FAKE_EXIT"):
        print("Traceback (most recent call last):\nArtifactError: sha256 differs", flush=True)
        sys.exit(int(code))
    time.sleep(float(os.environ.get("FAKE_START", "0")))
    ready = os.environ.get("FAKE_READY") != "no"

    def unready(*_: object) -> None:
        nonlocal ready
        ready = False

    signal.signal(signal.SIGUSR1, unready)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                method, path, _ = line.decode().split(" ", 2)
                length, close, expect = 0, False, False
                while (header := (await reader.readline()).decode().strip().lower()) != "":
                    length = int(header.split(":")[1]) if header.startswith("content-length:") else length
                    close = close or header == "connection: close"
                    expect = expect or header == "expect: 100-continue"
                status, answer = 200, {"version": version, "pid": os.getpid(), "path": path}
                if length > 1_000_000:  # like the real service: refused by its length, unread
                    status, answer, close = 413, {"error": "too large"}, True
                else:
                    if expect:
                        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                    answer["bytes"] = len(await reader.readexactly(length))
                if path == "/readyz" and not ready:
                    status, answer = 503, {"error": "artifact: sha256 differs"}
                if path == "/predict":
                    await asyncio.sleep(REQUEST_SECONDS)
                if path == "/die":
                    os._exit(9)
                content = json.dumps(answer).encode()
                head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
                head += "Connection: close\r\n\r\n" if close else "\r\n"
                writer.write(head.encode() + (b"" if method == "HEAD" else content))
                await writer.drain()
                if close:
                    break
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", port)
    print(f"fake service version {version} listens on {port}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1])))
