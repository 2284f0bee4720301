"""The gateway in this process, in front of small HTTP servers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from ci.local import gateway, processes
from ci.local.gateway import Endpoint, Route, client

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def backend(handler: Handler) -> AsyncIterator[Endpoint]:
    runner = web.ServerRunner(web.Server(handler), shutdown_timeout=0.1)
    await runner.setup()
    port = processes.free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield Endpoint(port)
    finally:
        await runner.cleanup()


@asynccontextmanager
async def route(target: Endpoint | None = None) -> AsyncIterator[tuple[Route, aiohttp.ClientSession]]:
    async with client() as session, aiohttp.ClientSession(auto_decompress=False) as user:
        made = Route("dev/tumor", session)
        await made.open(processes.free_port())
        made.switch(target)
        try:
            yield made, user
        finally:
            await made.close()


def url(made: Route, path: str = "/predict") -> str:
    return f"http://127.0.0.1:{made.port}{path}"


async def named(request: web.BaseRequest) -> web.Response:
    return web.json_response({"headers": dict(request.headers), "path": request.rel_url.raw_path_qs})


def test_requests_and_answers_pass_unchanged() -> None:
    async def handler(request: web.BaseRequest) -> web.Response:
        body = await request.read()
        return web.Response(
            status=422,
            headers={
                "X-Request-Id": request.headers["X-Request-Id"],
                "Content-Encoding": "gzip",
                "X-Path": request.path,
            },
            body=request.method.encode() + body,
        )

    async def go() -> None:
        async with backend(handler) as target, route(target) as (made, user):
            headers = {"X-Request-Id": "abc"}
            async with user.put(url(made, "/a?b=%20c"), data=b"\0\xff", headers=headers) as answer:
                assert answer.status == 422
                assert answer.headers["X-Request-Id"] == "abc"
                assert answer.headers["Content-Encoding"] == "gzip"
                assert await answer.read() == b"PUT\0\xff"
            async with user.head(url(made), headers=headers) as answer:
                assert (answer.status, await answer.read()) == (422, b"")

    asyncio.run(go())


def test_headers_of_one_connection_are_not_passed_on() -> None:
    async def go() -> None:
        async with backend(named) as target, route(target) as (made, user):
            headers = {"Connection": "x-secret", "X-Secret": "1", "TE": "trailers", "Accept": "a/b"}
            async with user.get(URL(url(made, "/x?y=%2F"), encoded=True), headers=headers) as answer:
                seen = await answer.json()
            assert seen["path"] == "/x?y=%2F"
            assert seen["headers"]["Accept"] == "a/b"
            assert seen["headers"]["Host"] == f"127.0.0.1:{made.port}"
            assert seen["headers"]["X-Forwarded-For"] == "127.0.0.1"
            assert {"X-Secret", "TE"}.isdisjoint(seen["headers"])

    asyncio.run(go())


def test_a_request_waits_for_a_process_that_is_coming_back() -> None:
    async def go() -> None:
        async with backend(named) as target, route(target) as (made, user):
            made.switch(None)
            waiting = asyncio.create_task(user.post(url(made), data=b"1"))
            await asyncio.sleep(0.2)
            assert not waiting.done()
            made.switch(target)
            assert (await waiting).status == 200

    asyncio.run(go())


def test_without_a_process_the_answer_is_503_at_once() -> None:
    async def go() -> None:
        async with route() as (made, user):
            begun = time.monotonic()
            async with user.post(url(made), data=b"1") as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "2"
                assert await answer.json() == {"error": "dev/tumor has no process that is Ready"}
            assert time.monotonic() - begun < 1

    asyncio.run(go())


def test_a_process_that_does_not_come_back_ends_the_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "HOLD_SECONDS", 0.3)

    async def go() -> None:
        async with route(Endpoint(processes.free_port())) as (made, user):
            async with user.post(url(made), data=b"1") as answer:  # nobody listens there
                assert answer.status == 502
            made.switch(None)
            async with user.post(url(made), data=b"1") as answer:
                assert answer.status == 503

    asyncio.run(go())


def test_no_more_than_the_limit_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "WAITING_LIMIT", 3)

    async def go() -> None:
        async with backend(named) as target, route(target) as (made, user):
            made.switch(None)
            waiting = [asyncio.create_task(user.post(url(made), data=b"1")) for _ in range(5)]
            await asyncio.sleep(0.3)
            assert sorted(task.result().status for task in waiting if task.done()) == [503, 503]
            made.switch(target)
            assert sorted([(await task).status for task in waiting]) == [200, 200, 200, 503, 503]

    asyncio.run(go())


def test_a_request_that_ends_its_process_is_not_sent_on_and_on() -> None:
    deaths = 0

    async def go() -> None:
        async def deadly(request: web.BaseRequest) -> web.Response:
            nonlocal deaths
            deaths += 1
            made.switch(Endpoint(target.port))  # the next process, which dies of it in the same way
            assert request.transport
            request.transport.abort()
            return web.Response()

        async with backend(deadly) as target, route(target) as (made, user):
            answer = await user.post(url(made), data=b"poison")
            assert answer.status == 502
            assert "ended without an answer" in (await answer.json())["error"]

    asyncio.run(go())
    assert deaths == gateway.DEATHS_LIMIT


def test_a_switch_does_not_disturb_requests_under_way_and_tells_when_they_are_done() -> None:
    async def go() -> None:
        begun, release = asyncio.Event(), asyncio.Event()

        async def slow(_: web.BaseRequest) -> web.Response:
            begun.set()
            await release.wait()
            return web.Response(text="old")

        async def new(_: web.BaseRequest) -> web.Response:
            return web.Response(text="new")

        async with backend(slow) as old, backend(new) as target, route(old) as (made, user):
            under_way = asyncio.create_task(user.post(url(made), data=b"1"))
            await begun.wait()
            assert made.switch(target) is old
            async with user.post(url(made), data=b"1") as answer:
                assert await answer.text() == "new"
            assert old.in_flight == 1 and not old.idle.is_set()
            release.set()
            assert await (await under_way).text() == "old"
            await asyncio.wait_for(old.idle.wait(), 1)

    asyncio.run(go())


def test_a_large_body_that_the_service_refuses_unread_gets_the_service_s_answer() -> None:
    async def refusing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 X\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await writer.drain()
        writer.close()  # with unread bytes this resets the connection

    async def go() -> None:
        server = await asyncio.start_server(refusing, "127.0.0.1", 0)
        async with server, route(Endpoint(server.sockets[0].getsockname()[1])) as (made, user):
            for _ in range(5):
                async with user.post(url(made), data=io.BytesIO(b"x" * 10_000_000)) as answer:
                    assert (answer.status, await answer.text()) == (413, "big")

    asyncio.run(go())


def test_a_body_that_the_gateway_cannot_keep_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway, "BODY_LIMIT", 1000)

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 100

    async def go() -> None:
        async with backend(named) as target, route(target) as (made, user):
            for data in (b"x" * 1001, chunks()):
                async with user.post(url(made), data=data) as answer:
                    assert answer.status == 413
            async with user.post(url(made), data=b"x" * 1000) as answer:
                assert answer.status == 200

    asyncio.run(go())


def test_an_answer_of_unknown_length_is_passed_on_as_it_comes() -> None:
    async def streaming(request: web.BaseRequest) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        for _ in range(50):
            await answer.write(b"x" * 10_000)
        return answer

    async def go() -> None:
        async with backend(streaming) as target, route(target) as (made, user):
            answer = await user.get(url(made))
            assert len(await answer.read()) == 500_000

    asyncio.run(go())


def test_a_service_that_takes_too_long_gives_504() -> None:
    async def hanging(_: web.BaseRequest) -> web.Response:
        await asyncio.sleep(5)
        return web.Response()

    async def go() -> None:
        async with backend(hanging) as target, route(target) as (made, user):
            made._session._timeout = aiohttp.ClientTimeout(total=0.3)
            async with user.post(url(made), data=b"1") as answer:
                assert answer.status == 504

    asyncio.run(go())


def test_a_taken_port_raises() -> None:
    async def go() -> None:
        async with backend(named) as target, client() as session:
            with pytest.raises(OSError):
                await Route("dev/tumor", session).open(target.port)

    asyncio.run(go())
