"""Make the process of one application what git wants, and keep it so.

What was Ready last (`stable`) is kept running whatever happens, as a Deployment keeps its old pods: a newer version
takes over only when it is Ready, and one that never becomes Ready is stopped and tried again later.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from ci.errors import WharfError
from ci.local import processes
from ci.local.desired import Desired, Fault, Key
from ci.local.gateway import Endpoint, Route
from ci.local.processes import HOST, Mark

TICK = 0.2  # seconds between two looks at the process
PROBE_EVERY = 5.0  # seconds
PROBE_TIMEOUT = 5.0  # seconds
PROBE_FAILURES = 5  # answers missed in a row until a process counts as hung and is killed
DRAIN_SECONDS = 30.0  # how long requests under way may take when another process took over
BACKOFF_LIMIT = 60.0  # seconds between two tries
SETTLED = 60.0  # a process that ran this long starts with a clean slate when it dies


@dataclass(frozen=True)
class Launch:
    """How to start the process of an image: a command and its whole environment."""

    command: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None = None


# Gets what git wants and the loopback port to listen on; raises WharfError when the image is not there.
Launcher = Callable[[Desired, int], Launch]


class NotReady(Exception):
    """A process did not become Ready, and why."""


@dataclass(eq=False)
class Backend:
    """A process that was started for what git wanted."""

    desired: Desired
    mark: Mark
    port: int
    log: Path
    begins: int = 0  # where its output begins in the log
    endpoint: Endpoint = field(init=False)
    ready_since: float = 0.0  # time.monotonic; 0 until it is Ready

    def __post_init__(self) -> None:
        self.endpoint = Endpoint(self.port)

    def url(self, path: str) -> str:
        return f"http://{HOST}:{self.port}{path}"

    def to_json(self) -> dict[str, Any]:
        return {
            "pid": self.mark.pid,
            "created": self.mark.created,
            "port": self.port,
            "log": str(self.log),
            "desired": self.desired.to_json(),
        }

    def why_ended(self) -> str:
        """Say how the process ended and what it said last."""
        code = processes.exit_code(self.mark)
        how = "ended" if code is None else f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        said = processes.last_line(self.log, self.begins)
        return f"its process {how}{f': {said}' if said else ''}"


class Tools:
    """What the reconcilers of one agent share."""

    def __init__(
        self,
        state: Path,
        logs: Path,
        launcher: Launcher,
        session: aiohttp.ClientSession,
        changed: Callable[[], None],
        log: Callable[[str], None],
    ) -> None:
        self.state, self.logs, self.launcher, self.session = state, logs, launcher, session
        self.changed, self.log = changed, log
        # Starting is the heavy part. Healing does not queue behind the tries of a version that fails.
        self.starting = asyncio.Semaphore(2)
        self.healing = asyncio.Semaphore(2)
        self.backends: set[Backend] = set()
        self._background: set[asyncio.Task[None]] = set()

    async def start(self, desired: Desired) -> Backend:
        """Start the process of `desired`; raises WharfError or OSError when that is not possible."""
        port = processes.free_port()
        launch = await asyncio.to_thread(self.launcher, desired, port)
        log = self.logs / f"{desired.key.environment}-{desired.key.model}.log"
        mark, begins = processes.start(
            launch.command, state=self.state, role="backend", log=log, env=launch.env, cwd=launch.cwd
        )
        backend = Backend(desired, mark, port, log, begins)
        self.backends.add(backend)
        self.changed()
        return backend

    def retire(self, backend: Backend) -> None:
        """Let `backend` finish its requests, then stop it; goes on in the background."""

        async def work() -> None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(backend.endpoint.idle.wait(), DRAIN_SECONDS)
            await asyncio.to_thread(processes.stop, backend.mark)
            self.backends.discard(backend)
            self.changed()

        task = asyncio.create_task(work())
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def retired(self) -> None:
        """Wait until everything that was retired has stopped."""
        while self._background:
            await asyncio.gather(*self._background)

    async def probe(self, url: str, timeout: float) -> tuple[int, str]:
        """GET `url`: status and the beginning of the answer; raises ClientError or TimeoutError without one."""
        async with self.session.get(url, timeout=aiohttp.ClientTimeout(total=timeout)) as answer:
            return answer.status, (await answer.content.read(300)).decode(errors="replace").strip()


class _Attempts:
    """Counts failures and says when to try again: at once, then after 1, 2, 4 … 60 seconds."""

    def __init__(self) -> None:
        self.failures, self.reason, self.next_try = 0, "", 0.0

    def failed(self, reason: str) -> None:
        self.failures += 1
        self.reason = reason
        self.next_try = time.monotonic() + min(2.0 ** (self.failures - 1), BACKOFF_LIMIT)

    def due(self) -> bool:
        return time.monotonic() >= self.next_try


class Reconciler:
    """Keeps one application at what git wants; `run` does so until it is pruned."""

    def __init__(self, key: Key, route: Route, tools: Tools, running: Backend | None, stable: Desired | None) -> None:
        self.key, self.route, self.tools = key, route, tools
        self.target: Desired | Fault | None = None
        self.stable = stable  # what was Ready last, and is kept running
        self.running = running
        self.wake = asyncio.Event()
        self.restarts = 0
        self.note = ""  # something about the address that the user should know
        self._rollout: asyncio.Task[Backend] | None = None
        self._rollout_for: Desired | None = None
        self._rollout_tries = _Attempts()
        self._heal: asyncio.Task[Backend] | None = None
        self._heal_tries = _Attempts()
        self._probe: asyncio.Task[None] | None = None
        self._unready = ""  # what the running process says when it is not Ready
        self._since = time.time()
        self._shown: tuple[Any, ...] = ()
        if running:
            running.ready_since = time.monotonic()
            route.switch(running.endpoint)
        elif stable:
            route.expect()

    def aim(self, target: Desired | Fault | None) -> None:
        """Set what git wants now; None: nothing, the application is pruned."""
        if target != self.target:
            self.target = target
            self._rollout_tries = _Attempts()
            self.wake.set()

    async def run(self) -> None:
        try:
            while self.target is not None:
                await self._tick()
                self._announce()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), TICK)
                self.wake.clear()
            await self._prune()
        finally:
            self._rollout, self._heal = self._give_up(self._rollout), self._give_up(self._heal)
            self._stop_probe()

    async def _tick(self) -> None:
        if self.running and not processes.alive(self.running.mark):
            self._died(self.running)
        self._finish_heal()
        self._finish_rollout()
        target = self.target
        if isinstance(target, Desired) and target.digest == self._digest(self.stable):
            self._rollout = self._give_up(self._rollout)
        elif isinstance(target, Desired):
            if self._rollout and self._digest(self._rollout_for) != target.digest:
                self._rollout = self._give_up(self._rollout)
            if not self._rollout and self._rollout_tries.due():
                self._rollout_for = target
                self._rollout = asyncio.create_task(self._bring_up(target, self.tools.starting))
        if self.stable and not self.running and not self._heal and self._heal_tries.due():
            self._heal = asyncio.create_task(self._bring_up(self.stable, self.tools.healing))

    def _died(self, backend: Backend) -> None:
        """The serving process is gone: whatever is left of it is stopped, and the same is started again."""
        self.running = None
        self.route.switch(None)
        self.restarts += 1
        if time.monotonic() - backend.ready_since > SETTLED:
            self._heal_tries = _Attempts()
        reason = backend.why_ended()
        self._heal_tries.failed(reason)
        if self._heal_tries.failures == 1:
            self._heal_tries.next_try = 0.0
        self._stop_probe()
        self.tools.retire(backend)

    def _finish_rollout(self) -> None:
        if self._rollout and self._rollout.done():
            task, self._rollout = self._rollout, None
            backend = self._result(task, self._rollout_tries)
            if backend and backend.desired.digest == self._digest(self.target):
                self.stable = backend.desired
                self._heal = self._give_up(self._heal)
                self._heal_tries = _Attempts()
                self._take_over(backend)
            elif backend:
                self.tools.retire(backend)

    def _finish_heal(self) -> None:
        if self._heal and self._heal.done():
            task, self._heal = self._heal, None
            if backend := self._result(task, self._heal_tries):
                self._take_over(backend)

    def _result(self, task: asyncio.Task[Backend], tries: _Attempts) -> Backend | None:
        try:
            return task.result()
        except (NotReady, OSError) as error:
            tries.failed(str(error))
        except WharfError as error:
            tries.failed(error.lines[0])
        return None

    def _take_over(self, backend: Backend) -> None:
        """Send all new requests to `backend`; the process before it finishes what it has, then stops."""
        before, self.running = self.running, backend
        self._unready = ""
        self.route.switch(backend.endpoint)
        self._stop_probe()
        if before:
            self.tools.retire(before)
        self.tools.changed()

    def _give_up(self, task: asyncio.Task[Backend] | None) -> None:
        """End the bringing-up of a process that nobody wants any more, and the process itself."""
        if task and task.done() and not task.cancelled() and not task.exception():
            self.tools.retire(task.result())
        elif task:
            task.cancel()  # `_bring_up` stops what it started

    async def _bring_up(self, desired: Desired, turn: asyncio.Semaphore) -> Backend:
        """Start a process and wait until it is Ready; raises NotReady, and what `Tools.start` raises."""
        async with turn:
            backend = await self.tools.start(desired)
            try:
                await self._until_ready(backend)
            except BaseException:
                self.tools.retire(backend)
                raise
            backend.ready_since = time.monotonic()
            return backend

    async def _until_ready(self, backend: Backend) -> None:
        deadline = time.monotonic() + backend.desired.deadline
        url, said = backend.url(backend.desired.ready_path), "no answer"
        while time.monotonic() < deadline:
            if not processes.alive(backend.mark):
                raise NotReady(backend.why_ended())
            try:
                status, text = await self.tools.probe(url, 2.0)
                if status == 200:
                    return
                said = f"{status} {text}"[:300]
            except (aiohttp.ClientError, TimeoutError):
                pass  # it does not listen yet
            await asyncio.sleep(0.1)
        raise NotReady(f"not Ready after {backend.desired.deadline:g} seconds: {said}")

    async def _watch(self, backend: Backend) -> None:
        """Ask the running process whether it is alive and Ready; kill one that does not answer any more."""
        missed = 0
        while True:
            await asyncio.sleep(PROBE_EVERY)
            try:
                await self.tools.probe(backend.url(backend.desired.live_path), PROBE_TIMEOUT)
                status, text = await self.tools.probe(backend.url(backend.desired.ready_path), PROBE_TIMEOUT)
                missed, self._unready = 0, "" if status == 200 else f"not Ready: {status} {text}"
            except (aiohttp.ClientError, TimeoutError):
                missed += 1
            if missed >= PROBE_FAILURES:
                await asyncio.to_thread(processes.stop, backend.mark, 0.0)
                self.wake.set()
                return

    def _stop_probe(self) -> None:
        if self._probe:
            self._probe.cancel()
            self._probe = None

    async def _prune(self) -> None:
        """Git does not want it any more: close the address, finish the requests, stop the process."""
        self._rollout, self._heal = self._give_up(self._rollout), self._give_up(self._heal)
        self._stop_probe()
        await self.route.close()
        self.route.switch(None)
        if self.running:
            self.tools.retire(self.running)
        self.running = self.stable = None
        self.tools.changed()

    @staticmethod
    def _digest(what: Desired | Fault | None) -> str:
        return what.digest if isinstance(what, Desired) else ""

    def _announce(self) -> None:
        """Watch the running process, and tell the agent when something that `view` shows has changed."""
        if self.running and not self._probe:
            self._probe = asyncio.create_task(self._watch(self.running))
        shown = (*self._state(), self.running and self.running.mark, self.restarts)
        if shown != self._shown:
            self._shown, self._since = shown, time.time()
            sync, health, message = self._state()
            process = f", process {self.running.mark.pid}" if self.running else ""
            self.tools.log(f"{self.key}: {sync}, {health}{process}{f': {message}' if message else ''}")
            self.tools.changed()

    def _state(self) -> tuple[str, str, str]:
        """Return sync, health and message in the words of Argo CD."""
        target, tries = self.target, self._rollout_tries
        if isinstance(target, Fault):
            return "Unknown", "Healthy" if self.running else "Missing", target.message
        if target is None:
            return "OutOfSync", "Progressing", "removed from git: stopping"
        if self._digest(target) == self._digest(self.stable):
            if self.running and self._unready:
                return "Synced", "Degraded", self._unready
            if self.running:
                return "Synced", "Healthy", ""
            health = "Degraded" if self._heal_tries.failures > 1 else "Progressing"
            return "Synced", health, f"restarting: {self._heal_tries.reason or 'no process was there'}"
        if tries.failures:
            still = f"; version {self.stable.version} goes on serving" if self.running and self.stable else ""
            return "OutOfSync", "Degraded", f"version {target.version}: {tries.reason}{still}"
        health = "Progressing" if self.running or self._rollout_started() else "Missing"
        return "OutOfSync", health, f"version {target.version} is starting"

    def _rollout_started(self) -> bool:
        return any(b.desired == self.target for b in self.tools.backends)

    def view(self) -> dict[str, Any]:
        """Return the entry of this application in `status.json`."""
        sync, health, message = self._state()
        target = self.target if isinstance(self.target, Desired) else None
        shown = self.stable or target
        return {
            "model": self.key.model,
            "environment": self.key.environment,
            "target": "local",
            "version": shown.version if shown else None,
            "desired": target.version if target else None,
            "sync": sync,
            "health": health,
            "url": f"http://{HOST}:{self.route.port}",
            "message": "; ".join(part for part in (message, self.note) if part),
            "pid": self.running.mark.pid if self.running else None,
            "restarts": self.restarts,
            "since": self._since,
        }
