"""What the tests of the local target share: an origin with rendered manifests, and an agent over FakeService."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from ci.errors import Unavailable
from ci.local import processes
from ci.local.desired import Desired
from ci.local.processes import Mark
from ci.local.reconcile import Launch, Launcher
from ci.shell import git
from ci.workspace import Workspace

LAUNCHER = "tests.ci.local.fakes:launcher"
ROOT = Path(__file__).parents[3]
AUTHOR = {
    "GIT_AUTHOR_NAME": "test",
    "GIT_AUTHOR_EMAIL": "test@example.org",
    "GIT_COMMITTER_NAME": "test",
    "GIT_COMMITTER_EMAIL": "test@example.org",
}


def launcher(workspace: Workspace) -> Launcher:
    """Serve every image by FakeService, except one with `absent` in its name."""

    def launch(desired: Desired, port: int) -> Launch:
        if "absent" in desired.image:
            raise Unavailable(f"no bento for {desired.image}")
        service = str(Path(__file__).with_name("fake_service.py"))
        return Launch((sys.executable, "-S", service, str(port)), {**os.environ, **dict(desired.env)})

    return launch


def deployment(model: str, environment: str, version: int, image: str = "", **env: str) -> dict[str, Any]:
    """Return a Deployment with the parts that matter to the agent."""
    image = image or f"wharf.local/{model}@sha256:{version:064x}"
    variables = {"WHARF_MODEL": model, "WHARF_VERSION": str(version), "WHARF_ENVIRONMENT": environment, **env}
    container = {
        "name": model,
        "image": image,
        "env": [{"name": name, "value": value} for name, value in variables.items()]
        + [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": "http"}},
        "livenessProbe": {"httpGet": {"path": "/livez", "port": "http"}},
    }
    spec = {"progressDeadlineSeconds": 5, "template": {"spec": {"containers": [container]}}}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": model}, "spec": spec}


class Origin:
    """A bare repository with rendered manifests; every method is one commit on main."""

    def __init__(self, state: Path) -> None:
        self.path = state / "origin.git"
        self.path.mkdir(parents=True)
        git(self.path, "init", "--quiet", "--bare", "--initial-branch=main")
        self.files: dict[str, str] = {}

    def put(self, model: str, environment: str, version: int, image: str = "", **env: str) -> str:
        path = f"gitops/rendered/{environment}/{model}/"
        self.files[path + "deployment.yaml"] = yaml.safe_dump(deployment(model, environment, version, image, **env))
        self.files[path + "service.yaml"] = yaml.safe_dump({"kind": "Service", "metadata": {"name": model}})
        return self.commit()

    def remove(self, model: str, environment: str) -> str:
        path = f"gitops/rendered/{environment}/{model}/"
        self.files = {name: text for name, text in self.files.items() if not name.startswith(path)}
        return self.commit()

    def commit(self) -> str:
        """Make `files` the whole content of main."""
        env = {**AUTHOR, "GIT_INDEX_FILE": str(self.path / "test-index")}
        git(self.path, "read-tree", "--empty", env=env)
        for name, text in self.files.items():
            blob = git(self.path, "hash-object", "-w", "--stdin", stdin=text)
            git(self.path, "update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", env=env)
        tree = git(self.path, "write-tree", env=env)
        commit = git(self.path, "commit-tree", tree, "-m", "test", env=env)
        git(self.path, "update-ref", "refs/heads/main", commit)
        return commit


class RunningAgent:
    """An agent as its own process, as `wharf up` starts it, over FakeService."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self.mark: Mark | None = None
        self.first_port = random.randrange(20000, 32000)  # below what the system gives to outgoing connections

    def start(self) -> None:
        command = [sys.executable, "-m", "ci.local.agent", "--root", str(self.workspace.root), "--launcher", LAUNCHER]
        command += ["--first-port", str(self.first_port)]
        state, log = self.workspace.state, self.workspace.logs / "agent.log"
        self.mark, _ = processes.start(command, state=state, role="agent", log=log, env=dict(os.environ), cwd=ROOT)

    def kill(self) -> None:
        """End the agent with SIGKILL, which leaves its processes running."""
        assert self.mark
        os.kill(self.mark.pid, 9)
        assert processes.wait_until(lambda: not processes.alive(self.mark), 5)

    def end(self) -> None:
        """Stop the agent and everything it started."""
        if self.mark:
            processes.stop(self.mark)
        processes.end(processes.owned(self.workspace.state, "agent", "backend"), grace=1)

    def status(self) -> dict[str, Any]:
        try:
            return json.loads((self.workspace.state / "agent" / "status.json").read_text())
        except FileNotFoundError:
            return {"applications": []}

    def app(self, model: str = "tumor", environment: str = "dev") -> dict[str, Any]:
        found = [a for a in self.status()["applications"] if (a["model"], a["environment"]) == (model, environment)]
        return found[0] if found else {"version": None, "sync": None, "health": None, "message": "", "pid": None}

    def until(self, condition: Callable[[dict[str, Any]], bool], timeout: float = 20, **which: str) -> dict[str, Any]:
        """Wait until the application's entry fulfils `condition` and return it."""
        if not processes.wait_until(lambda: condition(self.app(**which)), timeout, 0.03):
            log = (self.workspace.logs / "agent.log").read_text()
            raise AssertionError(f"still {self.status()} after {timeout} s; agent.log:\n{log}")
        return self.app(**which)

    def healthy(self, version: int, **which: str) -> dict[str, Any]:
        return self.until(lambda a: (a["version"], a["sync"], a["health"]) == (version, "Synced", "Healthy"), **which)


def call(url: str, body: bytes = b"{}", timeout: float = 40) -> dict[str, Any]:
    """POST `body` and return the answer; raises on every status but 200."""
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=timeout) as answer:
        return json.loads(answer.read())


class Hammer:
    """Sends requests to one address all the time, over kept and over fresh connections, and counts what failed."""

    def __init__(self, url: str, kept: int = 4, fresh: int = 2) -> None:
        self.url, self.kept, self.fresh = url, kept, fresh
        self.answers: list[int] = []  # versions that answered
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Hammer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    async def _run(self) -> None:
        async with aiohttp.ClientSession() as kept:
            fresh = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
            async with fresh:
                sessions = [kept] * self.kept + [fresh] * self.fresh
                await asyncio.gather(*(self._send(session) for session in sessions))

    async def _send(self, session: aiohttp.ClientSession) -> None:
        while not self._stop.is_set():
            try:
                async with session.post(self.url, data=b'{"rows": [[1, 2]]}') as answer:
                    body = await answer.json()
                    if answer.status == 200:
                        self.answers.append(body["version"])
                    else:
                        self.failures.append(f"{answer.status} {body}")
            except Exception as error:
                self.failures.append(repr(error))

    def until(self, version: int, timeout: float = 20) -> None:
        """Wait until `version` answers."""
        begun = time.monotonic()
        while version not in self.answers[-3:]:
            assert time.monotonic() - begun < timeout, f"version {version} never answered: {self.answers[-5:]}"
            time.sleep(0.02)
