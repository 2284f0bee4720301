"""The stable address of an application: a reverse proxy whose target changes without a failed request.

On a cluster a Service does this. A request that finds no ready process, or whose process dies before its answer
began, is held and sent again to the next one: predictions change nothing, so sending one twice is harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from ci.local.processes import HOST

HOLD_SECONDS = 30.0  # how long a request waits for a process: a cold start of a bento on two busy cores fits in
BODY_LIMIT = 16 * 1024 * 1024  # bytes kept to send a request again; services refuse far smaller ones by themselves
EXPECT_FROM = 256 * 1024  # bytes from which the service is asked first: its 413 then arrives before the body is sent
ANSWER_LIMIT = 8 * 1024 * 1024  # larger answers are passed on as they come
WAITING_LIMIT = 512  # requests held at once; more are told to come back later
ANSWER_SECONDS = 75.0  # services time out long before
# A request that saw this many processes die is the likely reason: it must not kill the next one as well.
DEATHS_LIMIT = 3

_HOP_BY_HOP = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "te", "trailer"),
    *("transfer-encoding", "upgrade"),
}


class BackendLost(Exception):
    """The process was gone before its answer began."""


@dataclass(eq=False)
class Endpoint:
    """One process that answers requests on a loopback port."""

    port: int
    in_flight: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.idle.set()

    def enter(self) -> None:
        self.in_flight += 1
        self.idle.clear()

    def leave(self) -> None:
        self.in_flight -= 1
        if not self.in_flight:
            self.idle.set()


def client() -> aiohttp.ClientSession:
    """Return the session that all routes share: connections to the processes are kept and used again."""
    return aiohttp.ClientSession(
        # Shorter than the 5 seconds after which uvicorn closes an idle connection.
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=4.0),
        timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=3.0),
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
        trust_env=False,
    )


class Route:
    """The address of one application and the process behind it at the moment."""

    def __init__(self, name: str, session: aiohttp.ClientSession, on_lost: Callable[[], None] = lambda: None) -> None:
        self.name = name
        self.port: int | None = None
        self.target: Endpoint | None = None
        self._session = session
        self.on_lost = on_lost
        self._lost_at = float("-inf")
        self._changed = asyncio.Event()
        self._waiting = 0
        self._runner: web.ServerRunner | None = None

    async def open(self, port: int) -> None:
        """Listen on `port` of the loopback address; raises OSError when it is taken."""
        runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=10.0)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, port, backlog=1024).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner, self.port = runner, port

    async def close(self) -> None:
        """Stop listening; requests under way are finished first."""
        if self._runner:
            await self._runner.cleanup()
            self._runner = None

    def switch(self, target: Endpoint | None) -> Endpoint | None:
        """Send every request from now on to `target`; return what stood there before."""
        before, self.target = self.target, target
        if before and not target:
            self._lost_at = time.monotonic()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        return before

    def expect(self) -> None:
        """Hold requests although no process was there yet: one is on its way."""
        self._lost_at = time.monotonic()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await _body(request)
        if body is None:
            return _fault(413, f"the body is larger than {BODY_LIMIT // 1024 // 1024} MB")
        until = time.monotonic() + HOLD_SECONDS
        lost: list[Endpoint] = []
        while True:
            target = self.target or await self._next(until)
            if target is None:
                return _fault(503, f"{self.name} has no process that is Ready", {"Retry-After": "2"})
            target.enter()
            try:
                return await self._forward(request, body, target)
            except BackendLost as reason:
                if target not in lost:
                    lost.append(target)
                if len(lost) >= DEATHS_LIMIT or time.monotonic() >= until:
                    return _fault(502, f"{self.name} ended without an answer: {reason}")
            except TimeoutError:
                return _fault(504, f"{self.name} gave no answer within {ANSWER_SECONDS:g} seconds")
            finally:
                target.leave()
            self.on_lost()
            await self._pause()

    async def _next(self, until: float) -> Endpoint | None:
        """Wait for a process, as long as one was there a moment ago and is likely to come back."""
        until = min(until, self._lost_at + HOLD_SECONDS)
        if self._waiting >= WAITING_LIMIT:
            return None
        self._waiting += 1
        try:
            while self.target is None and (left := until - time.monotonic()) > 0:
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    return None
            return self.target
        finally:
            self._waiting -= 1

    async def _pause(self) -> None:
        """Give the reconciler a moment to notice; a switch ends it early."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), 0.1)

    async def _forward(self, request: web.BaseRequest, body: bytes, target: Endpoint) -> web.StreamResponse:
        headers = _passed_on(request.headers)
        headers["X-Forwarded-For"] = request.remote or HOST
        headers["X-Forwarded-Proto"] = "http"
        large = len(body) >= EXPECT_FROM
        if large:
            headers.popall("Expect", None)
        url = URL(f"http://{HOST}:{target.port}{request.rel_url.raw_path_qs}", encoded=True)
        try:
            answer = await self._session.request(
                request.method,
                url,
                headers=headers,
                data=io.BytesIO(body) if large else body or None,
                allow_redirects=False,
                expect100=large,
            )
        except aiohttp.ClientError as error:
            raise BackendLost(type(error).__name__) from None
        async with answer:
            passed = _passed_on(answer.headers)
            length = answer.content_length
            if request.method == "HEAD" or answer.status in (204, 304):
                return web.Response(status=answer.status, headers=passed)
            if length is not None and length <= ANSWER_LIMIT:
                try:
                    content = await answer.read()
                except aiohttp.ClientError as error:
                    raise BackendLost(type(error).__name__) from None
                passed.popall("Content-Length", None)
                return web.Response(status=answer.status, headers=passed, body=content)
            # From here on bytes reach the client: a process that dies now cuts the answer off.
            passing = web.StreamResponse(status=answer.status, headers=passed)
            await passing.prepare(request)
            async for chunk in answer.content.iter_chunked(64 * 1024):
                await passing.write(chunk)
            await passing.write_eof()
            return passing


def _passed_on(headers: object) -> CIMultiDict[str]:
    """Copy `headers` without those that belong to one connection."""
    copied: CIMultiDict[str] = CIMultiDict(headers)  # pyright: ignore[reportArgumentType] - both kinds are multidicts
    named = {name.strip().lower() for value in copied.getall("Connection", []) for name in value.split(",")}
    for name in _HOP_BY_HOP | named:
        copied.popall(name, None)
    return copied


async def _body(request: web.BaseRequest) -> bytes | None:
    """Read the whole body; None when it is larger than BODY_LIMIT."""
    if (request.content_length or 0) > BODY_LIMIT:
        return None
    if not request.body_exists:
        return b""
    parts: list[bytes] = []
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
        if size > BODY_LIMIT:
            return None
        parts.append(chunk)
    return b"".join(parts)


def _fault(status: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.Response(
        status=status, headers=headers, body=json.dumps({"error": message}).encode(), content_type="application/json"
    )
