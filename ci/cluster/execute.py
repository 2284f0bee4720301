"""Run a command in a container over a WebSocket, in the protocol v4.channel.k8s.io.

In one thread and on a connection of its own: used from threads, httpx_ws reads and writes one TLS connection from two
of them, which OpenSSL does not allow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import httpx_ws

OUTPUT, ERRORS, STATUS = 1, 2, 3  # channels; the status comes last and is a JSON document
_MOST_BYTES = 16 * 1024 * 1024  # of one message


def execute(
    settings: Mapping[str, Any], path: str, query: Mapping[str, Any], extensions: Mapping[str, Any], timeout_s: float
) -> dict[int, bytes]:
    """Return what came on each channel; `settings` are those of an httpx client, `path` is that of the pod's `exec`.

    Raises TimeoutError when nothing comes for `timeout_s`, httpx_ws.WebSocketUpgradeError when the server refuses, and
    the other errors of httpx and httpx_ws when the connection breaks.
    """

    async def work() -> dict[int, bytes]:
        said: dict[int, bytes] = {OUTPUT: b"", ERRORS: b"", STATUS: b""}
        async with (
            httpx.AsyncClient(**settings) as client,
            httpx_ws.aconnect_ws(
                path,
                client,
                subprotocols=["v4.channel.k8s.io"],
                max_message_size_bytes=_MOST_BYTES,
                params=dict(query),
                headers={"Accept": "*/*"},  # a stream, not an object
                extensions=dict(extensions),
            ) as socket,
        ):
            while not said[STATUS]:
                message = await socket.receive_bytes(timeout=timeout_s)
                said[message[0]] = said.get(message[0], b"") + message[1:]
        return said

    try:
        return asyncio.run(work())
    except Exception as error:
        raise _only(error) from None


def _only(error: Exception) -> Exception:
    """Return the error that a task group has wrapped."""
    while isinstance(error, ExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error
