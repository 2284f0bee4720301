"""Start and stop the local platform: MLflow, and the agent that runs the models."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ci.console import say
from ci.errors import Unavailable
from ci.files import write_atomic
from ci.local import processes
from ci.local.processes import HOST, Mark
from ci.shell import CommandFailed, git
from ci.workspace import Workspace, shown_uri, tracking_uri

if TYPE_CHECKING:
    from ci.status import Application

MLFLOW_PORTS = range(5001, 5020)  # 5000 is taken on many machines (AirPlay, registries)
MLFLOW_SECONDS = 120.0  # the first start makes the database
AGENT_SECONDS = 30.0
_ROLES = ("agent", "backend", "mlflow")


@dataclass(frozen=True)
class Part:
    """A part of the platform after `start_…`."""

    url: str  # empty for the agent
    started: bool  # False: it ran already
    note: str = ""  # something the user should know


def _file(workspace: Workspace) -> Path:
    return workspace.state / "platform.json"


def recorded(workspace: Workspace) -> dict[str, Any]:
    """Return what `platform.json` says, an empty mapping where there is none or it cannot be read."""
    try:
        known = json.loads(_file(workspace).read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _facts(workspace: Workspace, part: str) -> dict[str, Any]:
    facts = recorded(workspace).get(part)
    return facts if isinstance(facts, dict) else {}


def record(workspace: Workspace, part: str, facts: dict[str, Any] | None) -> None:
    """Write down in `platform.json` what is known of `part`; None forgets it."""
    known = recorded(workspace)
    if facts is None:
        known.pop(part, None)
    else:
        known[part] = facts
    write_atomic(_file(workspace), json.dumps(known, indent=1) + "\n")


def _locked(workspace: Workspace) -> contextlib.AbstractContextManager[bool]:
    """Hold the platform: two commands that start or stop parts at once take turns."""
    return processes.locked(workspace.state / "platform.lock")


# -- MLflow ------------------------------------------------------------------------------------------------------------


def start_mlflow(workspace: Workspace) -> Part:
    """Start the local MLflow server unless it runs; does not wait for it (see `wait_for_mlflow`).

    With MLFLOW_TRACKING_URI set nothing is started: that server is used.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return Part(uri, False, "MLFLOW_TRACKING_URI is set: that MLflow is used, none is started")
    with _locked(workspace):
        known = _facts(workspace, "mlflow")
        if processes.alive(processes.mark_of(known)):
            return Part(str(known["url"]), False)
        processes.end(
            processes.owned(workspace.state, "mlflow")
        )  # of a command that was killed before it wrote it down
        had = known.get("port")
        port = processes.free_port([had, *MLFLOW_PORTS] if isinstance(had, int) else MLFLOW_PORTS)
        note = f"port {had} is taken by another program, MLflow is now on {port}" if had and had != port else ""
        if not had and port != MLFLOW_PORTS[0]:
            note = f"port {MLFLOW_PORTS[0]} is taken by another program, MLflow is on {port}"
        folder = workspace.state / "mlflow"
        (folder / "artifacts").mkdir(parents=True, exist_ok=True)
        mark, _ = processes.start(
            _mlflow_command(folder, port),
            state=workspace.state,
            role="mlflow",
            log=workspace.logs / "mlflow.log",
            env=_mlflow_environment(),
            cwd=folder,
        )
        url = f"http://{HOST}:{port}"
        record(workspace, "mlflow", {"url": url, "port": port, "pid": mark.pid, "created": mark.created})
        return Part(url, True, note)


def _mlflow_command(folder: Path, port: int) -> list[str]:
    # One worker and no job consumers: the defaults are 15 processes and 1.4 GB.
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]


def _mlflow_environment() -> dict[str, str]:
    """Return this environment without MLflow settings, which are meant for clients, and with telemetry off."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    return env | {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }


def wait_for_mlflow(workspace: Workspace, part: Part, timeout: float = MLFLOW_SECONDS) -> None:
    """Wait until MLflow answers; raises Unavailable with its last words when it does not."""
    mark = None if os.environ.get("MLFLOW_TRACKING_URI") else processes.mark_of(_facts(workspace, "mlflow"))
    log = workspace.logs / "mlflow.log"

    def settled() -> bool:
        return processes.answers(f"{part.url.rstrip('/')}/health") or (mark is not None and not processes.alive(mark))

    if not part.url.startswith("http"):
        return  # a database or a folder: there is no server to wait for
    processes.wait_until(settled, timeout, 0.2)
    if processes.answers(f"{part.url.rstrip('/')}/health", 5.0):
        return
    if mark is None:
        raise Unavailable(f"MLflow at {shown_uri(part.url)} does not answer", tip="is MLFLOW_TRACKING_URI right?")
    why = "does not answer" if processes.alive(mark) else "ended"
    raise Unavailable(
        f"MLflow {why}: {processes.last_line(log) or 'it said nothing'}",
        tip="`wharf logs mlflow` shows more; `wharf down` and `wharf up` start it anew",
    )


def mlflow_answers(workspace: Workspace) -> bool:
    """Tell whether the MLflow that the commands use can be reached now (a database or folder always can)."""
    uri = tracking_uri(workspace)
    return not uri.startswith("http") or processes.answers(f"{uri.rstrip('/')}/health", 5.0)


# -- the agent ---------------------------------------------------------------------------------------------------------


def start_agent(workspace: Workspace, *extra: str) -> Part:
    """Start the agent unless it runs and reports, and wait until it has read the origin.

    `extra` are options of `python -m ci.local.agent`. Raises Unavailable when it ends or says nothing.
    """
    from ci.status import agent_fault

    with _locked(workspace):
        mark = processes.mark_of(_facts(workspace, "agent"))
        if mark and processes.alive(mark):
            if processes.wait_until(lambda: not agent_fault(workspace), 3.0):
                return Part("", False)
            processes.stop(mark)  # it hangs
        processes.end(processes.owned(workspace.state, "agent"))
        log = workspace.logs / "agent.log"
        # The repository's own code, wherever the command was called from and however it was installed.
        mark, begins = processes.start(
            [sys.executable, "-m", "ci.local.agent", "--root", str(workspace.root), *extra],
            state=workspace.state,
            role="agent",
            log=log,
            env=dict(os.environ),
            cwd=Path(__file__).parents[2],
        )
        record(workspace, "agent", {"pid": mark.pid, "created": mark.created})
    if not processes.wait_until(lambda: _reported(workspace, mark) or not processes.alive(mark), AGENT_SECONDS):
        raise Unavailable(f"the agent said nothing for {AGENT_SECONDS:g} seconds", tip="see `wharf logs agent`")
    if not processes.alive(mark):
        raise Unavailable(
            f"the agent ended: {processes.last_line(log, begins) or 'it said nothing'}", tip="see `wharf logs agent`"
        )
    return Part("", True)


def _reported(workspace: Workspace, mark: Mark) -> bool:
    try:
        report = json.loads((workspace.state / "agent" / "status.json").read_text())
    except (OSError, ValueError):
        return False
    return report["pid"] == mark.pid and bool(report["revision"] or report["problem"])


def wait_healthy(
    workspace: Workspace,
    name: str,
    environment: str,
    version: int | None = None,
    timeout: float = 180.0,
    watch: Callable[[str], None] = lambda _message: None,
) -> str:
    """Wait until `version` (None: whatever git wants) of `name` is Synced and Healthy; return its address.

    `watch` is told how things stand. Raises Unavailable with the reason when it is not there in `timeout` seconds, or
    as soon as waiting is of no use: the agent does not run, or on a cluster no pod of the version can start.
    """
    from ci.cluster import access

    who, look = ("Argo CD", _look_at_cluster) if access.load(workspace) else ("the agent", _look_at_agent)
    found: Application | None = None
    fault = ""

    def settled() -> bool:
        nonlocal found, fault
        found, fault = look(workspace, name, environment)
        if found:
            watch(f"{found.health}{f': {found.message}' if found.message else ''}")
        return bool(fault) or _there(found, version)

    processes.wait_until(settled, timeout, 0.2)
    if found and _there(found, version):
        return found.url
    if fault:
        raise Unavailable(f"{name} in {environment}: {fault}")
    reason = f"{found.sync}, {found.health}: {found.message}" if found else f"{who} has not seen its release"
    raise Unavailable(
        f"{name} in {environment} is not Healthy after {timeout:g} seconds: {reason}",
        tip=f"`wharf logs {name} --env {environment}` shows what its process says",
    )


def _look_at_agent(workspace: Workspace, name: str, environment: str) -> tuple[Application | None, str]:
    """Return the application, and why waiting for it is of no use."""
    from ci.status import agent_fault, applications

    fault = agent_fault(workspace)
    here = [a for a in applications(workspace) if (a.model, a.environment) == (name, environment)]
    return (here[0] if here else None), fault


def _look_at_cluster(workspace: Workspace, name: str, environment: str) -> tuple[Application | None, str]:
    from ci.cluster import argocd
    from ci.status import applications

    try:
        here = [a for a in applications(workspace) if (a.model, a.environment) == (name, environment)]
    except Unavailable:
        return None, ""  # an API server that restarts: it goes on when it is back
    return (here[0], argocd.hopeless(here[0])) if here else (None, "")


def _there(application: Any, version: int | None) -> bool:
    return application is not None and application.well and version in (None, application.version)


# -- both --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def only_one_up(workspace: Workspace) -> Generator[None]:
    """Let one `wharf up` work at a time; a second one waits and then finds everything done."""
    busy: Callable[[], None] = lambda: say("  another `wharf up` works on this repository: waiting for it")  # noqa: E731
    with processes.locked(workspace.state / "up.lock", busy=busy):
        yield


def up(workspace: Workspace) -> list[Part]:
    """Start what does not run: MLflow, the origin, the agent; wait until they answer."""
    from ci.local.origin import ensure, sync_user

    mlflow = start_mlflow(workspace)
    ensure(workspace)
    sync_user(workspace)
    agent = start_agent(workspace)
    wait_for_mlflow(workspace, mlflow)
    return [mlflow, agent]


def down(workspace: Workspace) -> list[str]:
    """Stop what was started for this workspace and nothing else; return what was stopped, in words."""
    if not workspace.state.is_dir():
        return []
    stopped: list[str] = []
    with _locked(workspace):
        # The agent first: it would heal the services that are stopped after it.
        for part, name in (("agent", "the agent"), ("backend", "services"), ("mlflow", "MLflow")):
            facts = _facts(workspace, part)
            mark = processes.mark_of(facts)
            running = {p.pid: p for p in (processes.members(mark) if mark else [])}
            running |= {p.pid: p for p in processes.owned(workspace.state, part)}
            leaders = {os.getsid(pid) for pid in running if _exists(pid)}
            if processes.end(running.values()):
                stopped.append(
                    f"{len(leaders)} {'service' if len(leaders) == 1 else name}" if part == "backend" else name
                )
            if mark:
                kept = {key: value for key, value in facts.items() if key not in ("pid", "created")}
                record(workspace, part, kept or None)
    return stopped


def _exists(pid: int) -> bool:
    try:
        os.getsid(pid)
    except ProcessLookupError:
        return False
    return True


def forget(workspace: Workspace) -> None:
    """Remove all local state and the git remote `wharf`; call `down` first."""
    if workspace.state.is_dir():
        shutil.rmtree(workspace.state)
    from ci.git import remote

    with contextlib.suppress(CommandFailed):  # not a git repository: then there is no remote either
        if remote.remotes(workspace.root).get(remote.LOCAL_NAME) == str(remote.local_origin(workspace)):
            git(workspace.root, "remote", "remove", remote.LOCAL_NAME)
