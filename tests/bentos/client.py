"""Call a Runtime as an ASGI server would, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bentos.serving import Runtime


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        def refuse(constant: str) -> None:
            raise AssertionError(f"{constant} is not JSON")

        return json.loads(self.body, parse_constant=refuse)


async def call(
    runtime: Runtime,
    body: Any = b"",
    path: str = "/predict",
    method: str = "POST",
    headers: dict[str, str] | None = None,
    parts: Iterable[bytes] | None = None,
    hang: bool = False,
) -> Reply:
    """Send one request; `parts` is a body in pieces without a content-length, `hang` never ends it."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    pieces = [content] if parts is None else list(parts)
    given = {"content-length": str(len(content))} if parts is None else {}
    given.update(headers or {})
    sent: list[dict[str, Any]] = []
    left = iter(pieces)
    remaining = len(pieces)

    async def receive() -> dict[str, Any]:
        nonlocal remaining
        if not remaining:
            await asyncio.sleep(3600)
        remaining -= 1
        return {"type": "http.request", "body": next(left), "more_body": bool(remaining) or hang}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "headers": [(name.encode(), value.encode()) for name, value in given.items()],
    }
    await runtime(scope, receive, send)
    start, end = sent
    return Reply(start["status"], {k.decode(): v.decode() for k, v in start["headers"]}, end["body"])


def post(runtime: Runtime, body: Any = b"", **options: Any) -> Reply:
    """Send one request in an event loop of its own."""
    return asyncio.run(call(runtime, body, **options))
