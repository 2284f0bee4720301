"""What somebody would look at when a test on the cluster failed: printed with the failure, bounded in size."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ci.cluster.kube import Kube, Rejected
from ci.cluster.node.layout import HERE
from ci.errors import Unavailable

LINES, WIDTH = 60, 400  # of each part
EVENTS_OF_S = 300
_ARGOCD = "argocd"

Json = dict[str, Any]


def dump(kube: Kube, provider: str) -> str:
    """Return the state of the cluster as text; a part that cannot be asked for says why."""
    parts: list[tuple[str, Callable[[], Iterable[str]]]] = [
        ("Applications", lambda: applications(kube)),
        ("ApplicationSets", lambda: application_sets(kube)),
        ("pods that are not Ready", lambda: pods(kube)),
        (f"events of the last {EVENTS_OF_S // 60} minutes", lambda: events(kube)),
        ("node", lambda: nodes(kube)),
        ("logs of Argo CD", lambda: argocd_logs(kube)),
    ]
    if provider == "node":
        parts.append(("processes of the node", node_processes))
    text: list[str] = []
    for title, ask in parts:
        text += [f"---- {title}", *_bounded(ask)]
    return "\n".join(text)


def _bounded(ask: Callable[[], Iterable[str]]) -> list[str]:
    try:
        lines = [line if len(line) <= WIDTH else f"{line[:WIDTH]}…" for line in ask()]
    except (Unavailable, Rejected, OSError) as error:
        return [f"cannot be asked: {error}"]
    left_out = len(lines) - LINES
    return [*lines[:LINES], f"… and {left_out} lines more"] if left_out > 0 else lines or ["none"]


def applications(kube: Kube) -> Iterable[str]:
    """One line for each Application, and its conditions and last operation where they have something to say."""
    for one in kube.list("argoproj.io/v1alpha1/Application"):
        status = one.get("status") or {}
        sync, health = status.get("sync") or {}, status.get("health") or {}
        yield (
            f"{one['metadata']['name']}: {sync.get('status')} at {str(sync.get('revision'))[:10]}, "
            f"{health.get('status')} {health.get('message') or ''}"
        )
        yield from (f"    {each.get('type')}: {each.get('message')}" for each in status.get("conditions") or [])
        operation = status.get("operationState") or {}
        if operation.get("phase") not in (None, "Succeeded"):
            yield f"    operation {operation.get('phase')}: {operation.get('message')}"
        for each in status.get("resources") or []:
            state = (each.get("health") or {}).get("status")
            if each.get("status") != "Synced" or state not in (None, "Healthy"):
                message = (each.get("health") or {}).get("message") or ""
                yield f"    {each.get('kind')} {each.get('name')}: {each.get('status')}, {state} {message}"


def application_sets(kube: Kube) -> Iterable[str]:
    """The conditions of each ApplicationSet."""
    for one in kube.list("argoproj.io/v1alpha1/ApplicationSet"):
        conditions = (one.get("status") or {}).get("conditions") or []
        said = "; ".join(f"{each['type']}={each['status']} {each.get('message', '')}" for each in conditions)
        yield f"{one['metadata']['name']}: {said or 'no conditions'}"


def pods(kube: Kube) -> Iterable[str]:
    """Each pod that is not Ready: why, and the end of what its containers wrote."""
    for one in kube.list("v1/Pod"):
        status, metadata = one.get("status") or {}, one["metadata"]
        conditions = {each["type"]: each for each in status.get("conditions") or []}
        if (conditions.get("Ready") or {}).get("status") == "True" or status.get("phase") == "Succeeded":
            continue
        going = " (going away)" if metadata.get("deletionTimestamp") else ""
        yield f"{metadata['namespace']}/{metadata['name']}: {status.get('phase')}{going}"
        scheduled = conditions.get("PodScheduled") or {}
        if scheduled.get("status") == "False":
            yield f"    {scheduled.get('reason')}: {scheduled.get('message')}"
        for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
            yield f"    {container['name']}: {state_of(container)}, {container.get('restartCount')} restarts"
            yield from (f"        {line}" for line in _tail(kube, one, str(container["name"]), 30))


def state_of(container: Json) -> str:
    """Say in one line how a container is."""
    state = container.get("state") or {}
    for word in ("waiting", "terminated", "running"):
        if word in state:
            why = state[word]
            told = [why.get("reason"), why.get("message"), f"code {why['exitCode']}" if "exitCode" in why else ""]
            return " ".join(filter(None, [word, *told]))
    return "no state yet"


def events(kube: Kube) -> Iterable[str]:
    """What Kubernetes wrote down lately, newest first, warnings before the rest."""
    since = time.time() - EVENTS_OF_S
    found = [(_when(each), each) for each in kube.list("v1/Event")]
    recent = [pair for pair in found if pair[0] >= since]
    for when, each in sorted(recent, key=lambda pair: (pair[1].get("type") != "Warning", -pair[0])):
        about = each["involvedObject"]
        clock = datetime.fromtimestamp(when, UTC).strftime("%H:%M:%S")
        where = f"{about.get('namespace', '')}/{about.get('kind')}/{about.get('name')}"
        yield f"{clock} {each.get('type')} {where}: {each.get('reason')}: {each.get('message')}"


def _when(event: Json) -> float:
    text = event.get("lastTimestamp") or event.get("eventTime") or event["metadata"]["creationTimestamp"]
    return datetime.fromisoformat(str(text)).timestamp()


def nodes(kube: Kube) -> Iterable[str]:
    """The conditions of each node, what it can hold, and what is asked of it."""
    asked: dict[str, list[str]] = {}
    for pod in kube.list("v1/Pod"):
        if (pod.get("status") or {}).get("phase") in ("Running", "Pending"):
            node = pod["spec"].get("nodeName") or "no node"
            for container in pod["spec"]["containers"]:
                request = (container.get("resources") or {}).get("requests") or {}
                asked.setdefault(node, []).append(str(request.get("cpu", "0")))
    for one in kube.list("v1/Node"):
        status = one.get("status") or {}
        conditions = ", ".join(f"{each['type']}={each['status']}" for each in status.get("conditions") or [])
        held = "cordoned" if one["spec"].get("unschedulable") else "schedulable"
        yield f"{one['metadata']['name']}: {held}; {conditions}; allocatable {json.dumps(status.get('allocatable'))}"
    for node, requests in asked.items():
        yield f"cpu requests on {node}: {' + '.join(sorted(requests))}"


def argocd_logs(kube: Kube) -> Iterable[str]:
    """What Argo CD's parts complained about, and their last lines."""
    for one in kube.list("v1/Pod", _ARGOCD):
        yield f"{one['metadata']['name']}:"
        for container in one["spec"]["containers"]:
            said = [readable(line) for line in _tail(kube, one, str(container["name"]), 400)]
            loud = [line for line in said if not line.startswith("info ")]
            yield from (f"    {line}" for line in dict.fromkeys([*loud[-8:], *said[-4:]]))


def readable(line: str) -> str:
    """Return level, message and error of a line of structured log; any other line as it is."""
    try:
        entry = json.loads(line)
        words = [
            entry["level"],
            entry.get("time", "")[11:19],
            entry.get("application"),
            entry["msg"],
            entry.get("error"),
        ]
    except (ValueError, KeyError, TypeError):
        return line
    return " ".join(str(word) for word in words if word)


def _tail(kube: Kube, pod: Json, container: str, lines: int) -> list[str]:
    where = pod["metadata"]["name"], pod["metadata"]["namespace"]
    try:
        return list(kube.logs(*where, container=container, tail=lines))
    except (Unavailable, Rejected) as error:
        return [f"no log: {error}"]


def node_processes() -> Iterable[str]:
    """How the supervisor sees its parts, and the end of the logs of those that are not ready."""
    status = json.loads((HERE.run / "supervisor-status.json").read_text())
    for name, part in status["parts"].items():
        yield f"{name}: {json.dumps(part)}"
        if not part["ready"]:
            yield from (f"    {line}" for line in _end_of(HERE.logs / f"{name}.log", 15))
    yield "supervisor:"
    yield from (f"    {line}" for line in _end_of(HERE.logs / "supervisor.log", 15))


def _end_of(path: Path, lines: int) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-lines:] if path.is_file() else [f"no {path.name}"]
