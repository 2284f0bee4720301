"""`wharf status`: what runs where. On the local target as the agent last reported it, on a cluster as Argo CD and the
pods say it now.

Reads one small file, or asks the API server a handful of times; asks neither the services nor MLflow.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ci.cluster import access
from ci.console import paint, say, table
from ci.errors import WharfError
from ci.local import processes
from ci.workspace import Workspace

FRESH_SECONDS = 15.0  # the agent touches its report every two seconds
_COLOURS = {"Healthy": "green", "Synced": "green", "Progressing": "yellow", "OutOfSync": "yellow", "Degraded": "red"}


@dataclass(frozen=True)
class Application:
    """One model in one environment, in the words of Argo CD."""

    model: str
    environment: str
    target: str  # local, cluster or aws
    version: int | None  # what answers; on the local target what is coming up where nothing answered yet
    sync: str  # Synced: git's version runs; OutOfSync: another one; Unknown: nobody can tell
    health: str  # Healthy, Progressing, Degraded or Missing (on a cluster also Argo CD's Suspended and Unknown)
    url: str  # POST url + "/predict" is answered
    message: str = ""  # why it is not Synced and Healthy
    desired: int | None = None  # the version that git wants
    pid: int | None = None
    restarts: int = 0  # since the agent started; on a cluster those of the pods that are there
    since: float = 0.0  # seconds since 1970: when sync, health, message or process changed last

    @property
    def well(self) -> bool:
        return self.sync == "Synced" and self.health == "Healthy"


def report_file(workspace: Workspace) -> Path:
    """The agent's report; its modification time is the agent's heartbeat."""
    return workspace.state / "agent" / "status.json"


def applications(workspace: Workspace) -> list[Application]:
    """Return every application by model and order of promotion; an empty list when the target was never started.

    On a cluster they have pods, too (`ci.cluster.argocd.ClusterApplication`), and it raises Unavailable when the API
    server does not answer.
    """
    if access.load(workspace):
        from ci.cluster import argocd

        found = argocd.applications(workspace)
    else:
        found = _reported(workspace)
    order = _order(workspace)
    return sorted(found, key=lambda a: (a.model, order.get(a.environment, len(order)), a.environment))


def _reported(workspace: Workspace) -> list[Application]:
    report = _report(workspace)
    if report is None:
        return []
    found = [_application(entry) for entry in report["applications"]]
    fault = _agent_fault(workspace, report)
    return [_unknown(application, fault) for application in found] if fault else found


def agent_fault(workspace: Workspace) -> str:
    """Say why what is shown cannot be relied on: the agent, or Argo CD, does not run; empty when it is fine."""
    if access.load(workspace):
        from ci.cluster import argocd

        return argocd.fault(workspace)
    report = _report(workspace)
    return "the agent was never started" if report is None else _agent_fault(workspace, report)


def revision(workspace: Workspace) -> str:
    """Return the commit of the origin's main that the agent, or Argo CD, works on; empty when it has none yet."""
    if access.load(workspace):
        from ci.cluster import argocd

        return argocd.revision(workspace)
    report = _report(workspace)
    return str(report["revision"]) if report else ""


def _report(workspace: Workspace) -> dict[str, Any] | None:
    try:
        report = json.loads(report_file(workspace).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        report = None  # never written in part, so somebody else wrote it
    return report if isinstance(report, dict) and "applications" in report else _EMPTY


_EMPTY: dict[str, Any] = {"applications": [], "pid": None, "revision": "", "problem": ""}


def _application(entry: Mapping[str, Any]) -> Application:
    known = Application.__dataclass_fields__
    return Application(**{name: value for name, value in entry.items() if name in known})


def _agent_fault(workspace: Workspace, report: Mapping[str, Any]) -> str:
    try:
        platform = json.loads((workspace.state / "platform.json").read_text())
        mark = processes.mark_of(platform.get("agent"))
    except (OSError, ValueError, AttributeError):
        mark = None
    if mark is None or not processes.alive(mark):
        return "the agent does not run; `wharf up` starts it"
    try:
        silent = time.time() - report_file(workspace).stat().st_mtime
    except FileNotFoundError:
        silent = float("inf")
    if silent > FRESH_SECONDS:
        return f"the agent has not reported for {silent:.0f} seconds; `wharf logs agent` may say why"
    return ""


def _unknown(application: Application, fault: str) -> Application:
    return replace(application, sync="Unknown", health="Missing", message=fault, pid=None)


def _order(workspace: Workspace) -> dict[str, int]:
    from ci.environments import load_all

    try:
        return {environment.name: place for place, environment in enumerate(load_all(workspace.root))}
    except (WharfError, OSError):
        return {}  # settings that are being edited must not hide what runs


def as_table(found: list[Application]) -> str:
    """Return the table that `wharf status` and `wharf up` print."""
    rows = [
        [a.model, a.environment, a.version or "-", _shown(a.sync), _shown(a.health), a.url, a.message] for a in found
    ]
    return table(["MODEL", "ENVIRONMENT", "VERSION", "SYNC", "HEALTH", "ADDRESS", ""], rows)


def _shown(word: str) -> str:
    # Padded before it is painted: `table` counts the bytes of a colour as width.
    return paint(word.ljust(11), _COLOURS[word]) if word in _COLOURS else word


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="show this model only")
    parser.add_argument("--env", help="show this environment only")
    parser.add_argument("--json", action="store_true", help="print a list with one object per model and environment")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    if options.model:
        workspace.model(options.model)
    found = [
        a for a in applications(workspace) if options.model in (None, a.model) and options.env in (None, a.environment)
    ]
    if options.json:
        print(json.dumps([asdict(application) for application in found], indent=2))
    elif found:
        print(as_table(found))
        if access.load(workspace):
            from ci.cluster import night

            night.show(found, options.model is not None)
    if not found:
        _say_nothing(workspace, filtered=bool(options.model or options.env))
    return 0


def _say_nothing(workspace: Workspace, *, filtered: bool) -> None:
    fault = agent_fault(workspace)
    what = "nothing runs" if fault or not filtered else "no such application runs"
    say(f"{what}: {fault}" if fault else f"{what}: release something with `wharf ship MODEL`")
    if fault == "the agent was never started":
        say(f"{paint('TIP', 'yellow')}    start the local platform with `make up`")
