"""`wharf logs` on a cluster: what the pods of a model, of MLflow or of Argo CD write."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ci.cluster import access, argocd
from ci.cluster import pods as pod_state
from ci.cluster.kube import Kube, Rejected
from ci.console import say
from ci.errors import Mistake, Unavailable
from ci.workspace import Workspace

PARTS: dict[str, tuple[str | None, str | None]] = {  # namespace (None: Argo CD's) and labels (None: all its pods)
    "mlflow": ("modelwharf", "app.kubernetes.io/name=mlflow"),
    "argocd": (None, None),
}
_AGAIN_S = 1.0


@dataclass(frozen=True)
class _Source:
    """A container of a pod, from one start to its end, and what stands in front of its lines."""

    name: str
    namespace: str
    shown: str
    restarts: int


def show(workspace: Workspace, name: str, environment: str | None, lines: int, follow: bool) -> None:
    """Print the last `lines` of every pod of `name`; with `follow` go on until Ctrl-C, new pods included.

    Raises Mistake for an unknown name or one without pods, Unavailable when the cluster does not answer.
    """
    kube = argocd.client(access.require(workspace))

    def listed() -> list[_Source]:
        return _sources(kube, workspace, name, environment)

    found = listed()
    if not found:
        if name not in PARTS:
            workspace.model(name)  # raises for an unknown one, with the likely meaning
        where = f" in {environment}" if environment else ""
        raise Mistake(f"{name} has no pod{where}", tip="see `wharf status`")
    if follow:
        return _follow(kube, found, listed, lines)
    for source in found:
        for line in _last(kube, source, lines):
            _print(source, line, len(found) > 1)


def _sources(kube: Kube, workspace: Workspace, name: str, environment: str | None) -> list[_Source]:
    if name in PARTS:
        namespace, labels = PARTS[name]
        pods = kube.list("v1/Pod", namespace or argocd.namespace_of(workspace), labels)
        if environment:
            raise Mistake(f"--env: {name} belongs to no environment")
    else:
        labels = f"app.kubernetes.io/part-of=modelwharf,app.kubernetes.io/name={name}"
        of = f",modelwharf.io/environment={environment}" if environment else ""
        pods = kube.list("v1/Pod", None, f"{labels},app.kubernetes.io/component=model-server{of}")
    found: list[_Source] = []
    for pod in sorted(pods, key=lambda pod: (pod["metadata"]["namespace"], pod["metadata"]["name"])):
        metadata = pod["metadata"]
        place = (metadata.get("labels") or {}).get("modelwharf.io/environment")
        shown = f"{place} {metadata['name']}" if place else metadata["name"]
        restarts = pod_state.read(pod).restarts
        found.append(_Source(metadata["name"], metadata["namespace"], shown, restarts))
    return found


def _last(kube: Kube, source: _Source, lines: int) -> list[str]:
    """Return the end of a log; of a container that is to be started again, what it wrote before it ended."""
    try:
        found = list(kube.logs(source.name, source.namespace, tail=lines))
        if found or not source.restarts:
            return found
    except Rejected as error:
        if not source.restarts:
            say(f"{source.shown}: {error.lines[0].partition(': ')[2]}")
            return []
    try:
        return list(kube.logs(source.name, source.namespace, tail=lines, previous=True))
    except Rejected:
        return []  # cleaned up


def _follow(kube: Kube, found: list[_Source], listed: Callable[[], list[_Source]], lines: int) -> None:
    """Print what all containers write, each read by a thread of its own; looks for new ones every second."""
    told: queue.SimpleQueue[tuple[_Source, str]] = queue.SimpleQueue()
    read: set[_Source] = set()

    def begin(source: _Source, tail: int | None) -> None:
        read.add(source)
        threading.Thread(target=_read, args=(kube, source, tail, told), daemon=True).start()

    for source in found:
        begin(source, lines)
    looked = time.monotonic()
    while True:
        with contextlib.suppress(queue.Empty):
            _print(*told.get(timeout=_AGAIN_S), True)
        if time.monotonic() - looked > _AGAIN_S:
            looked = time.monotonic()
            with contextlib.suppress(Unavailable):  # the API server restarts
                for source in listed():
                    if source not in read:
                        begin(source, None)


def _read(kube: Kube, source: _Source, tail: int | None, told: queue.SimpleQueue[tuple[_Source, str]]) -> None:
    """Read one container until it ends, through lost connections."""
    while True:
        try:
            for line in kube.logs(source.name, source.namespace, tail=tail, follow=True):
                told.put((source, line))
            return
        except Rejected as error:
            if error.status == 404:
                return  # the pod is gone
            tail = None  # it has not started yet
        except Unavailable:
            tail = 0  # the connection broke: from now on
        time.sleep(_AGAIN_S)


def _print(source: _Source, line: str, many: bool) -> None:
    print(f"{source.shown} | {line}" if many else line, flush=True)
