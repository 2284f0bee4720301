"""Wait until a workload runs as it was applied, and say why when it does not: which pod, and what is wrong with it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from ci.cluster.kube import Kube
from ci.errors import Unavailable, WharfError

Json = dict[str, Any]
KINDS = ("Deployment", "StatefulSet")
_LOOK_S = 0.5
_LONGEST = 300
# Of a container that does not run; the last two are what a pod starts with, nothing to be told.
_STARTING = {"ContainerCreating", "PodInitializing"}


def wait_ready(kube: Kube, kind: str, name: str, namespace: str, timeout_s: float) -> None:
    """Return when all pods of a workload are of its newest revision and Ready.

    An API server that is away meanwhile is waited for. Raises Unavailable after `timeout_s`, in one line that says
    which pod it is and why.
    """
    ends = time.monotonic() + timeout_s
    while True:
        try:
            found = kube.get(f"apps/v1/{kind}", name, namespace)
            if found is not None and is_ready(found):
                return
        except Unavailable:
            if time.monotonic() > ends:
                raise
        if time.monotonic() > ends:
            why = why_not(kube, kind, name, namespace)
            raise Unavailable(
                f"{namespace}/{name} is not Ready after {timeout_s:.0f} seconds: {why}",
                tip=f"`kubectl -n {namespace} get pods` shows them; the same command goes on where this one stopped",
            )
        time.sleep(_LOOK_S)


def is_ready(workload: Json) -> bool:
    """Tell whether the controller has seen the newest spec, and all its pods and only those are there and Ready."""
    status: Json = workload.get("status") or {}
    wanted = int(workload["spec"].get("replicas", 1))
    if int(status.get("observedGeneration", 0)) < int(workload["metadata"].get("generation", 0)):
        return False
    ready = status.get("availableReplicas" if workload["kind"] == "Deployment" else "readyReplicas", 0)
    counts = (status.get("replicas", 0), status.get("updatedReplicas", 0), ready)
    return all(int(count or 0) == wanted for count in counts)


def why_not(kube: Kube, kind: str, name: str, namespace: str) -> str:
    """Say in one line why a workload is not Ready; never raises what is wrong with the question itself."""
    try:
        workload = kube.get(f"apps/v1/{kind}", name, namespace)
        if workload is None:
            return "it does not exist"
        chosen = workload["spec"]["selector"]["matchLabels"]
        pods = kube.list("v1/Pod", namespace, ",".join(f"{key}={value}" for key, value in sorted(chosen.items())))
        if not pods:
            return _not_created(kube, workload)
        newest = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp")), reverse=True)
        for pod in newest:
            if reason := pod_fault(pod):
                return f"pod {pod['metadata']['name']}: {reason}{_last_words(kube, pod)}"
        return "its pods are Ready, but not all are of the newest revision yet"
    except WharfError as error:
        return f"nothing more is known ({error.lines[0]})"


def pod_fault(pod: Json) -> str | None:
    """Return what is wrong with a pod in a few words, None when it is Ready."""
    status: Json = pod.get("status") or {}
    conditions = {each["type"]: each for each in status.get("conditions") or []}
    if conditions.get("Ready", {}).get("status") == "True":
        return None
    scheduled = conditions.get("PodScheduled", {})
    if scheduled.get("status") == "False":
        return f"no node takes it: {scheduled.get('message', 'no reason given')}"
    for each in _statuses(status):
        reason = _container_fault(each)
        if reason:
            return f"container {each['name']}: {reason}"
    waiting = [each["name"] for each in _statuses(status) if not each.get("ready") and not _is_done(each)]
    return f"container {waiting[0]} is not ready yet" if waiting else str(status.get("phase", "Pending"))


def _container_fault(status: Json) -> str | None:
    state: Json = status.get("state") or {}
    if waiting := state.get("waiting"):
        reason = str(waiting.get("reason", ""))
        if reason in _STARTING or not reason:
            return None
        ended: Json = (status.get("lastState") or {}).get("terminated") or {}
        code = f" (it ended with code {ended['exitCode']})" if "exitCode" in ended else ""
        message = _short(str(waiting.get("message") or ""))
        return f"{reason}{code}" if code else f"{reason}{f': {message}' if message else ''}"
    ended = state.get("terminated") or {}
    if ended and ended.get("exitCode") != 0:
        return f"{ended.get('reason', 'Error')} (it ended with code {ended.get('exitCode')})"
    return None


def _is_done(status: Json) -> bool:
    return ((status.get("state") or {}).get("terminated") or {}).get("exitCode") == 0


def _statuses(status: Json) -> list[Json]:
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _last_words(kube: Kube, pod: Json) -> str:
    """Return the last line that the container which is not well has written, as the rest of a sentence."""
    for each in _statuses(pod.get("status") or {}):
        if each.get("ready") or _is_done(each):
            continue
        restarted = int(each.get("restartCount", 0)) > 0 and "running" not in (each.get("state") or {})
        where = pod["metadata"]["name"], pod["metadata"]["namespace"]
        try:
            lines = list(kube.logs(*where, container=each["name"], tail=3, previous=restarted))
        except WharfError:  # it never started, or its log is gone with it: then there is nothing to quote
            return ""
        said = _last_line(lines)
        return f"; it said: {said}" if said else ""
    return ""


def _last_line(lines: Iterable[str]) -> str:
    kept = [line.strip() for line in lines if line.strip()]
    return _short(kept[-1]) if kept else ""


def _short(text: str) -> str:
    """Return text in one line of bearable length: its beginning says what, and its end, often, why."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} … {line[-_LONGEST // 2 :]}"


def _not_created(kube: Kube, workload: Json) -> str:
    """Say why a controller makes no pods: a quota, Pod Security, or a webhook refuses them."""
    for condition in (workload.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return f"no pod can be made: {condition.get('message')}"
    name, namespace = workload["metadata"]["name"], workload["metadata"]["namespace"]
    events = kube.list("v1/Event", namespace, fields="type=Warning")
    about = [e for e in events if str((e.get("involvedObject") or {}).get("name", "")).startswith(name)]
    if about:
        last = max(about, key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
        return f"no pod can be made: {last.get('message')}"
    return "it has no pods yet: does the controller manager run?"
