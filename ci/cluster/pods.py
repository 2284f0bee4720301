"""What a pod says about itself: which version it runs, whether it is ready, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Json = Mapping[str, Any]

# Waiting reasons that are part of a normal start.
_STARTING = {"ContainerCreating", "PodInitializing", ""}
_PULL = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
_LONGEST = 240
UNREADY = "runs, but does not pass its readiness check"


@dataclass(frozen=True)
class Pod:
    """One pod of a model, in the words of `kubectl get pods`."""

    name: str
    namespace: str
    ready: bool
    status: str  # Running, ContainerCreating, CrashLoopBackOff, Terminating…
    restarts: int
    node: str
    version: int | None
    image: str  # the digest that the kubelet runs, empty before it was pulled
    since: float  # seconds since 1970: when it was created
    reason: str = ""  # why it is not ready, in a line; empty while it starts as it should

    @property
    def crashed(self) -> bool:
        """Whether what it wrote last may say why it is not ready."""
        return not self.ready and (self.restarts > 0 or self.status in {"Error", "CrashLoopBackOff"})


def read(pod: Json) -> Pod:
    """Return what the object of a pod says."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    containers = status.get("containerStatuses") or []
    word, reason = _judged(pod, containers)
    ready = _condition(status, "Ready").get("status") == "True" and "deletionTimestamp" not in metadata
    return Pod(
        name=metadata["name"],
        namespace=metadata["namespace"],
        ready=ready,
        status=word,
        restarts=sum(int(each.get("restartCount", 0)) for each in containers),
        node=(pod.get("spec") or {}).get("nodeName", ""),
        version=version_of(metadata),
        image=next((digest for each in containers if (digest := digest_of(str(each.get("imageID") or "")))), ""),
        since=seconds(metadata.get("creationTimestamp")),
        reason="" if ready else one_line(reason),
    )


def version_of(metadata: Json) -> int | None:
    """Return the model's version that the labels name."""
    text = str((metadata.get("labels") or {}).get("app.kubernetes.io/version", ""))
    return int(text) if text.isdigit() else None


def digest_of(image_id: str) -> str:
    """Return `sha256:…` of a container's imageID (`docker-pullable://name@sha256:…` in the longest form)."""
    _, found, digest = image_id.rpartition("sha256:")
    return found + digest


def seconds(timestamp: str | None) -> float:
    """Return an RFC 3339 time as seconds since 1970, 0 where there is none."""
    return datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0


def one_line(text: str, longest: int = _LONGEST) -> str:
    """Return `text` in one line of at most `longest` characters."""
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[: longest - 1]}…"


def _judged(pod: Json, containers: list[Json]) -> tuple[str, str]:
    """Return the one word for the state of a pod, and why it is not well."""
    status = pod.get("status") or {}
    if "deletionTimestamp" in pod["metadata"]:
        return "Terminating", ""
    if status.get("reason"):  # Evicted, NodeLost…
        return str(status["reason"]), f"{status['reason']}: {status.get('message', '')}"
    for container in [*(status.get("initContainerStatuses") or []), *containers]:
        found = _stopped(container, _limit(pod, str(container.get("name"))))
        if found:
            return found
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return "Pending", f"no node takes it: {scheduled.get('message', '')}"
    waiting = [str((each.get("state") or {}).get("waiting", {}).get("reason", "")) for each in containers]
    word = next(filter(None, waiting), str(status.get("phase", "Unknown")))
    if word == "Running" and any(each.get("started") and not each.get("ready") for each in containers):
        return word, UNREADY
    return word, ""


def _stopped(container: Json, limit: str) -> tuple[str, str] | None:
    """Return word and reason for a container that is held up, None for one that runs or starts as it should."""
    state, last = container.get("state") or {}, (container.get("lastState") or {}).get("terminated") or {}
    waiting = state.get("waiting") or {}
    word, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
    if word in _PULL:
        image = str(container.get("image", ""))
        return word, f"its image {image} cannot be pulled: {_cause(message, image) or word}"
    ended = state.get("terminated") or (last if word == "CrashLoopBackOff" else {})
    if ended.get("reason") == "OOMKilled":
        return word or "OOMKilled", f"was killed for using more memory than its limit{f' of {limit}' if limit else ''}"
    if ended and int(ended.get("exitCode", 0)) != 0:
        times = int(container.get("restartCount", 0))
        again = f", restarted {times} time{'s' * (times != 1)}" if times else ""
        return word or "Error", f"ends with code {ended['exitCode']}{again}"
    if word and word not in _STARTING:
        return word, f"{word}: {message}"
    return None


def _cause(message: str, image: str) -> str:
    """Return containerd's message without the calls that led to the cause; each of them repeats the image's name."""
    parts = message.rpartition("desc = ")[2].removeprefix("Back-off pulling image ").split(": ")
    return ": ".join(part for part in parts if image not in part) if image else ": ".join(parts)


def _limit(pod: Json, container: str) -> str:
    for each in (pod.get("spec") or {}).get("containers") or []:
        if each.get("name") == container:
            return str(((each.get("resources") or {}).get("limits") or {}).get("memory", ""))
    return ""


def _condition(status: Json, kind: str) -> Json:
    return next((each for each in status.get("conditions") or [] if each.get("type") == kind), {})
