"""The embedded agent: it follows the origin's main branch and makes processes match `gitops/rendered/`.

It stands where Argo CD, the kubelet and a Service stand on a cluster, for one machine. One process: a follower of the
branch, a reconciler for each application, and the gateway that holds their addresses. What it starts survives it, and
the next agent takes it over.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp

from ci.errors import Mistake, Unavailable, WharfError
from ci.files import write_atomic
from ci.local import processes
from ci.local.desired import Desired, Fault, Key, Manifests
from ci.local.gateway import Route, client
from ci.local.processes import Mark
from ci.local.reconcile import Backend, Launch, Launcher, Reconciler, Tools
from ci.shell import CommandFailed, git
from ci.workspace import Workspace

BRANCH = "refs/heads/main"
FIRST_PORT = 8400
PORTS = 200  # tried from the first one before any free one is taken
POLL_SECONDS = 0.3  # how often the branch is looked at (two stat calls)
REREAD_SECONDS = 5.0  # how often git is asked although the files look the same
PORT_PATIENCE = 2.0  # seconds
HEARTBEAT_SECONDS = 2.0
DEFAULT_LAUNCHER = "ci.local.agent:bento_launcher"
# What a serving process gets from this machine's environment; nothing else, no keys and no settings.
_KEPT = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "SYSTEMROOT")


def folder(workspace: Workspace) -> Path:
    return workspace.state / "agent"


def status_file(workspace: Workspace) -> Path:
    """The file that says what runs; its modification time is the agent's heartbeat."""
    return folder(workspace) / "status.json"


def origin(workspace: Workspace) -> Path:
    """The bare repository that the agent follows."""
    return workspace.state / "origin.git"


def bento_launcher(workspace: Workspace) -> Launcher:
    """Return the launcher of real bentos: an image is looked up in the local store and served by its own runtime."""
    from ci.build import find, serve_command

    def launch(desired: Desired, port: int) -> Launch:
        bento = find(workspace, desired.image)
        if bento is None:
            raise Unavailable(
                f"no bento with the content of {desired.image} is in the local store; "
                f"`wharf build {desired.key.model} --version {desired.version}` makes it"
            )
        env = {name: os.environ[name] for name in _KEPT if name in os.environ}
        env |= dict(desired.env)
        predictions = workspace.predictions(desired.key.environment, desired.key.model)
        predictions.mkdir(parents=True, exist_ok=True)
        env["WHARF_PREDICTION_LOG"] = str(predictions)
        return Launch(tuple(serve_command(bento, port)), env, workspace.state)

    return launch


@dataclass
class Remembered:
    """What the agent before this one knew about an application."""

    port: int | None = None
    stable: Desired | None = None
    running: Backend | None = None


class Agent:
    """One agent for one workspace."""

    def __init__(
        self, workspace: Workspace, launcher: Launcher, session: aiohttp.ClientSession, first_port: int = FIRST_PORT
    ) -> None:
        self.workspace, self.session, self.first_port = workspace, session, first_port
        self.tools = Tools(workspace.state, workspace.logs, launcher, session, self._changed, self._log)
        self.manifests = Manifests(origin(workspace))
        self.revision = ""
        self.problem = ""  # why git cannot be followed now
        self.apps: dict[Key, Reconciler] = {}
        self.ports: dict[Key, int] = {}
        self.stopping = asyncio.Event()
        self._remembered: dict[Key, Remembered] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        self._write_soon = False

    async def run(self) -> None:
        """Follow the branch until SIGTERM or until the workspace's state is removed."""
        self._recall()
        await asyncio.to_thread(self._sweep)
        self._write()
        helpers = [asyncio.create_task(self._follow()), asyncio.create_task(self._beat())]
        stopped = asyncio.create_task(self._stopped())
        done, _ = await asyncio.wait([*helpers, stopped], return_when=asyncio.FIRST_COMPLETED)
        tasks = [*helpers, stopped, *self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(app.route.close() for app in self.apps.values()))
        await self.tools.retired()
        if folder(self.workspace).is_dir():
            self._write()
        for task in done:
            task.result()  # a crash of a helper is a crash of the agent

    async def _stopped(self) -> None:
        await self.stopping.wait()

    # -- git ---------------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        seen: object = None
        read_at = float("-inf")
        while True:
            stamp = self._stamp()
            if stamp != seen or time.monotonic() - read_at > REREAD_SECONDS:
                seen, read_at = stamp, time.monotonic()
                await self._reread()
            await asyncio.sleep(POLL_SECONDS)

    def _stamp(self) -> object:
        """Return something that changes when the branch moves."""
        found: list[tuple[int, int] | None] = []
        for name in (BRANCH, "packed-refs"):
            try:
                status = (origin(self.workspace) / name).stat()
                found.append((status.st_mtime_ns, status.st_ino))
            except OSError:
                found.append(None)
        return found

    async def _reread(self) -> None:
        """Bring the applications to what the branch says now; what is in the way becomes the status message."""
        problem = ""
        wanted: Mapping[Key, Desired | Fault] | None = None
        revision = self.revision
        try:
            revision = await asyncio.to_thread(
                git, origin(self.workspace), "rev-parse", "--verify", "--quiet", f"{BRANCH}^{{commit}}"
            )
            if revision != self.revision:
                wanted = await asyncio.to_thread(self.manifests.read, revision)
        except (CommandFailed, subprocess.CalledProcessError, OSError, ValueError, IndexError) as error:
            detail = f": {error.stderr.strip()}" if isinstance(error, CommandFailed) and error.stderr.strip() else ""
            problem = f"the origin {origin(self.workspace).name} has no readable branch main{detail}"
        if wanted is not None:
            try:
                await self._apply(revision, wanted)
            except OSError as error:  # no port or no file to be had now: the next look tries again
                problem = f"revision {revision[:12]} cannot be applied: {error}"
        if problem != self.problem:
            self.problem = problem
            self._log(problem or f"revision {revision[:12]} is followed again")
            self._changed()

    async def _apply(self, revision: str, wanted: Mapping[Key, Desired | Fault]) -> None:
        self._log(f"revision {revision[:12]}: {', '.join(map(str, wanted)) or 'nothing to run'}")
        for key, target in wanted.items():
            if key not in self.apps:
                await self._add(key)
            self.apps[key].aim(target)
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._keep(key))
        for key, app in self.apps.items():
            if key not in wanted:
                app.aim(None)
        for key in [key for key in self._remembered if key not in wanted]:
            remembered = self._remembered.pop(key)
            if remembered.running:
                self.tools.retire(remembered.running)
        self.revision = revision
        self._changed()

    async def _add(self, key: Key) -> None:
        remembered = self._remembered.pop(key, Remembered())
        app = Reconciler(key, Route(str(key), self.session), self.tools, remembered.running, remembered.stable)
        app.route.on_lost = app.wake.set
        await self._open(app)
        self.apps[key] = app

    async def _open(self, app: Reconciler) -> None:
        """Give the application its address: the one it had, else the first free one."""
        had = self.ports.get(app.key)
        others = set(self.ports.values())
        new = (port for port in range(self.first_port, self.first_port + PORTS) if port not in others)
        # The port of an agent that was killed is free only a moment later: it is asked for again and again.
        if not (had and await self._listen(app, [had], PORT_PATIENCE)) and not await self._listen(app, new):
            await app.route.open(processes.free_port())
        port = app.route.port
        if had and port != had:
            app.note = f"port {had} is taken by another program, the address is now on {port}"
            self._log(f"{app.key}: {app.note}")
        self.ports[app.key] = cast(int, port)

    async def _listen(self, app: Reconciler, ports: Iterable[int], patience: float = 0.0) -> bool:
        """Listen on the first of `ports` that is free, trying each for `patience` seconds; False when none is."""
        for port in ports:
            until = time.monotonic() + patience
            while True:
                try:
                    await app.route.open(port)
                    return True
                except OSError:
                    if time.monotonic() >= until:
                        break
                await asyncio.sleep(0.1)
        return False

    async def _keep(self, key: Key) -> None:
        """Run the reconciler of `key` until it is pruned; wanted again meanwhile, it starts anew."""
        while True:
            try:
                await self.apps[key].run()
                break
            except Exception:  # a fault of one application must not stop the others
                self._log(f"{key}: the reconciler crashed and goes on in a moment\n{traceback.format_exc()}")
                await asyncio.sleep(1)
        self._log(f"{key}: removed from git, stopped")
        target = self.apps.pop(key).target
        self._tasks.pop(key, None)
        if target is not None:
            self.revision = ""  # the next look at git adds it again
        self._changed()

    # -- what outlives the agent -------------------------------------------------------------------------------------

    def _recall(self) -> None:
        """Read what the agent before this one left, and take over its processes that still run."""
        try:
            raw = json.loads((folder(self.workspace) / "state.json").read_text())
            entries = raw["applications"]
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._log(f"agent/state.json cannot be read ({type(error).__name__}): beginning without it")
            return
        for entry in entries:
            try:
                key, remembered = _remembered(entry)
            except (KeyError, TypeError, ValueError) as error:
                self._log(f"agent/state.json: an entry cannot be read ({type(error).__name__}): left out")
                continue
            self._remembered[key] = remembered
            if remembered.port:
                self.ports[key] = remembered.port
            if remembered.running:
                self.tools.backends.add(remembered.running)
                self._log(f"{key}: took over process {remembered.running.mark.pid}")

    def _sweep(self) -> None:
        """Stop serving processes of this workspace that nobody answers for: an agent was killed while starting them."""
        kept = {backend.mark.pid for backend in self.tools.backends}
        stray: list[Any] = []
        for process in processes.owned(self.workspace.state, "backend"):
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(process.pid) not in kept:
                    stray.append(process)
        if stray:
            self._log(f"stopping {len(stray)} processes that an earlier agent left behind")
            processes.end(stray)

    def _changed(self) -> None:
        """Write the files when the event loop comes round: many changes at once are one write."""
        if not self._write_soon:
            self._write_soon = True
            asyncio.get_running_loop().call_soon(self._write)

    def _write(self) -> None:
        self._write_soon = False
        if not folder(self.workspace).is_dir():
            return  # the state was removed: `_beat` ends the agent
        known = {key: Remembered(self.ports.get(key)) for key in self.ports} | self._remembered
        for key, app in self.apps.items():
            known[key] = Remembered(app.route.port, app.stable, app.running)
        state = [
            {
                "environment": key.environment,
                "model": key.model,
                "port": item.port,
                "stable": item.stable.to_json() if item.stable else None,
                "running": item.running.to_json() if item.running else None,
            }
            for key, item in sorted(known.items())
        ]
        write_atomic(folder(self.workspace) / "state.json", json.dumps({"applications": state}, indent=1))
        views = [app.view() for _, app in sorted(self.apps.items())]
        if self.problem:
            views = [{**view, "sync": "Unknown", "message": self.problem} for view in views]
        status = {
            "revision": self.revision,
            "updated": time.time(),
            "pid": os.getpid(),
            "problem": self.problem,
            "applications": views,
        }
        write_atomic(status_file(self.workspace), json.dumps(status, indent=1))

    async def _beat(self) -> None:
        """Show that the agent is alive; end it when its state is removed under it."""
        while True:
            await asyncio.sleep(HEARTBEAT_SECONDS)
            try:
                os.utime(status_file(self.workspace))
            except FileNotFoundError:
                if not folder(self.workspace).is_dir():
                    self._log("the state folder was removed: stopping everything")
                    for backend in list(self.tools.backends):
                        self.tools.retire(backend)
                    self.stopping.set()
                    return
                self._changed()

    def _log(self, text: str) -> None:
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}", flush=True)


def _remembered(entry: Mapping[str, Any]) -> tuple[Key, Remembered]:
    """Read one entry of state.json; a process that does not run any more is left out."""
    key = Key(entry["environment"], entry["model"])
    stable = Desired.from_json(entry["stable"]) if entry["stable"] else None
    running = None
    if raw := entry["running"]:
        backend = Backend(
            desired=Desired.from_json(raw["desired"]),
            mark=Mark(int(raw["pid"]), float(raw["created"])),
            port=int(raw["port"]),
            log=Path(raw["log"]),
        )
        if processes.alive(backend.mark) and stable and backend.desired.digest == stable.digest:
            running = backend
    return key, Remembered(entry["port"], stable, running)


def load_launcher(name: str, workspace: Workspace) -> Launcher:
    """Return the launcher that `module:function` makes for `workspace`; raises Mistake for an unknown one."""
    module, _, function = name.partition(":")
    try:
        make = cast(Callable[[Workspace], Launcher], getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise Mistake(f"no launcher '{name}': {error}") from None
    return make(workspace)


async def serve(workspace: Workspace, launcher: Launcher, first_port: int) -> None:
    """Run an agent for `workspace` until SIGTERM or SIGINT; its processes go on."""
    async with client() as session:
        agent = Agent(workspace, launcher, session, first_port)
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, agent.stopping.set)
        await agent.run()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m ci.local.agent", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="root of the repository")
    parser.add_argument(
        "--launcher", default=DEFAULT_LAUNCHER, help="how an image becomes a process (tests use another)"
    )
    parser.add_argument("--first-port", type=int, default=FIRST_PORT, help="where the addresses begin")
    options = parser.parse_args(arguments)
    workspace = Workspace(options.root.resolve())
    with processes.locked(folder(workspace) / "lock", wait=False) as mine:
        if not mine:
            print("an agent already runs for this workspace", file=sys.stderr)
            return 4
        try:
            launcher = load_launcher(options.launcher, workspace)
        except WharfError as error:
            print("\n".join(error.lines), file=sys.stderr)
            return error.exit_code
        try:
            from uvloop import new_event_loop
        except ImportError:
            new_event_loop = None
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve(workspace, launcher, options.first_port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
