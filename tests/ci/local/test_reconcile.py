"""One reconciler in this process, over FakeService; the agent's tests cover what goes over git."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ci.local import processes, reconcile
from ci.local.desired import Desired, Key, from_deployment
from ci.local.gateway import Route, client
from ci.local.reconcile import Reconciler, Tools
from ci.workspace import Workspace
from tests.ci.local.fakes import deployment, launcher

KEY = Key("dev", "tumor")


def wanted(version: int, **env: str) -> Desired:
    return from_deployment(KEY, deployment("tumor", "dev", version, **env))


class Bench:
    """A reconciler with everything it needs."""

    def __init__(self, app: Reconciler, tools: Tools, state: Path) -> None:
        self.app, self.tools, self.state = app, tools, state
        self.task = asyncio.create_task(app.run()) if app.target else None

    def aim(self, target: Desired | None) -> None:
        self.app.aim(target)
        if self.task is None:
            self.task = asyncio.create_task(self.app.run())

    async def until(self, condition: Callable[[dict[str, Any]], bool], timeout: float = 15) -> dict[str, Any]:
        deadline = time.monotonic() + timeout
        while not condition(self.app.view()):
            assert time.monotonic() < deadline, f"still {self.app.view()}"
            await asyncio.sleep(0.02)
        return self.app.view()

    async def healthy(self, version: int) -> dict[str, Any]:
        return await self.until(lambda v: (v["version"], v["sync"], v["health"]) == (version, "Synced", "Healthy"))

    def running(self) -> list[int]:
        return sorted(p.pid for p in processes.owned(self.state, "backend"))


@asynccontextmanager
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with client() as session:
        tools = Tools(tmp_path, tmp_path / "logs", launcher(Workspace(tmp_path)), session, lambda: None, lambda _: None)
        route = Route(str(KEY), session)
        await route.open(processes.free_port())
        made = Bench(Reconciler(KEY, route, tools, None, None), tools, tmp_path)
        route.on_lost = made.app.wake.set
        try:
            yield made
        finally:
            made.app.aim(None)
            if made.task:
                await made.task
            await tools.retired()
            left = made.running()
            processes.end(processes.owned(tmp_path, "backend"), grace=0)
            assert left == []


def test_it_says_missing_progressing_healthy(tmp_path: Path) -> None:
    async def go() -> None:
        async with bench(tmp_path) as made:
            made.app.target = wanted(1, FAKE_START="0.3")
            first = made.app.view()
            assert (first["sync"], first["health"], first["message"]) == (
                "OutOfSync",
                "Missing",
                "version 1 is starting",
            )
            made.aim(wanted(1, FAKE_START="0.3"))
            await made.until(lambda v: v["health"] == "Progressing")
            view = await made.healthy(1)
            assert (view["message"], view["restarts"], view["desired"]) == ("", 0, 1)
            assert view["pid"] in made.running()

    asyncio.run(go())


def test_a_process_that_hangs_is_killed_and_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "PROBE_EVERY", 0.05)
    monkeypatch.setattr(reconcile, "PROBE_TIMEOUT", 0.1)

    async def go() -> None:
        async with bench(tmp_path) as made:
            made.aim(wanted(1))
            before = (await made.healthy(1))["pid"]
            psutil.Process(before).suspend()
            after = await made.until(lambda v: v["health"] == "Healthy" and v["pid"] not in (None, before))
            assert after["restarts"] == 1
            await made.until(lambda _: made.running() == [after["pid"]])

    asyncio.run(go())


def test_tries_of_a_failing_version_become_rarer_and_a_new_one_is_tried_at_once(tmp_path: Path) -> None:
    async def go() -> None:
        async with bench(tmp_path) as made:
            made.aim(wanted(1, FAKE_EXIT="3"))
            await made.until(lambda v: v["health"] == "Degraded")
            tries = made.app._rollout_tries
            assert (tries.failures, 0.5 < tries.next_try - time.monotonic() <= 1.0) == (1, True)
            await made.until(lambda _: tries.failures == 2)
            assert 1.5 < tries.next_try - time.monotonic() <= 2.0
            tries.failures = 20
            tries.failed("again")
            assert tries.next_try - time.monotonic() <= reconcile.BACKOFF_LIMIT
            made.aim(wanted(2))
            await made.healthy(2)

    asyncio.run(go())


def test_a_process_that_dies_again_and_again_is_degraded_and_restarted_ever_more_rarely(tmp_path: Path) -> None:
    async def go() -> None:
        async with bench(tmp_path) as made:
            made.aim(wanted(1))
            for restarts in (1, 2):
                pid = (await made.healthy(1))["pid"]
                os.kill(pid, signal.SIGKILL)
                await made.until(lambda v, restarts=restarts: v["restarts"] == restarts)
            view = made.app.view()
            assert (view["sync"], view["health"]) == ("Synced", "Degraded")
            assert view["message"].startswith("restarting: its process was killed by signal 9")
            assert 1.0 < made.app._heal_tries.next_try - time.monotonic() <= 2.0

    asyncio.run(go())


def test_a_version_overtaken_while_it_starts_is_stopped(tmp_path: Path) -> None:
    async def go() -> None:
        async with bench(tmp_path) as made:
            made.aim(wanted(1, FAKE_START="30"))
            await made.until(lambda v: v["health"] == "Progressing")
            made.aim(wanted(2))
            view = await made.healthy(2)
            await made.until(lambda _: made.running() == [view["pid"]])
            assert made.app.stable == wanted(2)

    asyncio.run(go())


def test_going_back_while_the_new_version_starts_keeps_the_same_process(tmp_path: Path) -> None:
    async def go() -> None:
        async with bench(tmp_path) as made:
            made.aim(wanted(1))
            before = await made.healthy(1)
            made.aim(wanted(2, FAKE_START="30"))
            await made.until(lambda v: v["health"] == "Progressing" and len(made.running()) == 2)
            made.aim(wanted(1))
            await made.until(lambda _: made.running() == [before["pid"]])
            assert (await made.healthy(1))["pid"] == before["pid"]

    asyncio.run(go())


def test_a_running_process_that_says_it_is_not_ready_is_degraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconcile, "PROBE_EVERY", 0.05)

    async def go() -> None:
        async with bench(tmp_path) as made:
            made.aim(wanted(1))
            pid = (await made.healthy(1))["pid"]
            os.kill(pid, signal.SIGUSR1)  # FakeService: not Ready from now on
            view = await made.until(lambda v: v["health"] == "Degraded")
            assert view["message"].startswith("not Ready: 503")
            assert view["pid"] == pid

    asyncio.run(go())


def test_at_most_two_processes_start_at_once(tmp_path: Path) -> None:
    async def go() -> None:
        async with bench(tmp_path) as made:
            others = []
            for name in ("a", "b", "c", "d"):
                key = Key("dev", name)
                app = Reconciler(key, Route(name, made.tools.session), made.tools, None, None)
                app.aim(from_deployment(key, deployment(name, "dev", 1, FAKE_START="0.5")))
                others.append((app, asyncio.create_task(app.run())))
            most = 0
            while any(app.view()["health"] != "Healthy" for app, _ in others):
                most = max(most, sum(not b.ready_since for b in made.tools.backends))
                await asyncio.sleep(0.02)
            for app, task in others:
                app.aim(None)
                await task
            assert most == 2

    asyncio.run(go())
