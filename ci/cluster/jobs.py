"""Run a Kubernetes Job and stay with it: its object, its log line by line, and one clear line when it fails.

A Job's name follows from what it does, so the same command given twice finds the Job that runs already and shows its
log. Whoever started it removes it when interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from ci.console import say
from ci.errors import Mistake, Refusal, Unavailable, WharfError
from ci.rendering.manifests import USER
from infra.platform.kubernetes import container_security, network_policy, pod_security, tcp, to_dns
from infra.platform.mlflow import NAME as MLFLOW
from infra.platform.mlflow import NAMESPACE, PORT
from models.job_settings import Jobs

Json = dict[str, Any]
T = TypeVar("T")

TRACKING_URI = f"http://{MLFLOW}.{NAMESPACE}.svc:{PORT}"
_POLICY = "jobs"
_MARK = {"modelwharf.io/job": "true"}  # what the network policy chooses the pods by
_TTL_S = 3600  # a Job that ended stays for whoever wants to look
_POLL_S = 1.0
_AWAY_S = 120.0  # how long an API server may be away: the Job goes on without it
_STUCK = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"}
_PATIENCE_S = 20.0  # the first pull may fail for a moment
_CODES: dict[int, type[WharfError]] = {2: Mistake, 3: Refusal, 4: Unavailable}


@dataclass(frozen=True)
class Work:
    """What one Job does."""

    name: str  # see `name_of`
    model: str
    team: str
    step: str  # train or batch
    image: str  # by digest
    command: tuple[str, ...]
    needs: Jobs
    commit: str
    namespace: str = NAMESPACE
    env: Mapping[str, str] = field(default_factory=dict[str, str])
    writable: tuple[str, ...] = ()  # folders of the image that the work writes to, besides /tmp
    notes: Mapping[str, str] = field(default_factory=dict[str, str])  # annotations modelwharf.io/<name>


class Cluster(Protocol):
    """What is needed of `ci.cluster.kube.Kube`."""

    def get(self, kind: str, name: str, namespace: str | None = None) -> Json | None: ...

    def list(self, kind: str, namespace: str | None = None, labels: str | None = None) -> list[Json]: ...

    def create(self, obj: Mapping[str, Any]) -> Json: ...

    def apply(self, objects: list[Json]) -> None: ...

    def delete(self, kind: str, name: str, namespace: str | None = None, *, wait_s: float = 0) -> bool: ...

    def logs(
        self, pod: str, namespace: str, *, container: str | None = None, follow: bool = False
    ) -> Iterator[str]: ...


def name_of(step: str, model: str, *facts: str) -> str:
    """Return the name of a Job: `train-tumor-0123456789`, the digits being a digest over `facts`."""
    return f"{step}-{model}-{hashlib.sha256(chr(0).join(facts).encode()).hexdigest()[:10]}"


def policy(namespace: str) -> Json:
    """Return the network policy of Jobs: they reach MLflow and the cluster's DNS, and nobody reaches them."""
    to_mlflow: Json = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": MLFLOW}},
    }
    rules = [to_dns(), {"to": [to_mlflow], "ports": tcp(PORT)}]
    return network_policy(_POLICY, namespace, pods=_MARK, ingress=[], egress=rules)


def job(work: Work) -> Json:
    """Return the Job object of `work`."""
    labels = {
        "app.kubernetes.io/name": work.model,
        "app.kubernetes.io/component": work.step,
        "app.kubernetes.io/part-of": "modelwharf",
        "app.kubernetes.io/managed-by": "modelwharf",
        "modelwharf.io/team": work.team,
        **_MARK,
    }
    # Kueue takes a Job by this label: it suspends it, and lets it run when the queue has room.
    queued = {"kueue.x-k8s.io/queue-name": work.needs.queue} if work.needs.queue else {}
    notes = {f"modelwharf.io/{name}": value for name, value in {"commit": work.commit, **work.notes}.items()}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": work.name,
            "namespace": work.namespace,
            "labels": {**labels, **queued},
            "annotations": notes,
        },
        "spec": {
            "backoffLimit": 0,  # it can be given again, and goes on where it was: a person decides that
            "activeDeadlineSeconds": work.needs.deadline_minutes * 60,
            "ttlSecondsAfterFinished": _TTL_S,
            "template": {"metadata": {"labels": labels, "annotations": notes}, "spec": _pod(work)},
        },
    }


def _pod(work: Work) -> Json:
    needs = work.needs
    placed: Json = {"nodeSelector": dict(sorted(needs.node_selector.items()))} if needs.node_selector else {}
    tolerations: list[Json] = [toleration.model_dump(exclude_none=True) for toleration in needs.tolerations]
    if needs.gpu:  # nodes with GPUs are kept free of everything else by this taint
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if tolerations:
        placed["tolerations"] = tolerations
    requests: Json = {
        "cpu": needs.cpu,
        "memory": needs.memory,
        "ephemeral-storage": "1Mi",
    }  # the least: without it the limit counts
    limits: Json = {"memory": needs.memory, "ephemeral-storage": needs.scratch}
    if needs.gpu:
        limits["nvidia.com/gpu"] = requests["nvidia.com/gpu"] = needs.gpu
    folders = {"tmp": "/tmp", **{f"work-{i}": path for i, path in enumerate(work.writable)}}  # noqa: S108 (the pod's)
    env = {"HOME": "/tmp", "PYTHONUNBUFFERED": "1", **work.env}  # noqa: S108 (the pod's own)
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,  # it never talks to the Kubernetes API
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 10,
        "securityContext": pod_security(USER, owns_volumes=True),
        **placed,
        "containers": [
            {
                "name": work.step,
                "image": work.image,
                "imagePullPolicy": "IfNotPresent",  # a digest never means another image
                "command": list(work.command),
                "env": [{"name": name, "value": value} for name, value in sorted(env.items())],
                "resources": {"requests": requests, "limits": limits},
                "securityContext": container_security(),
                "volumeMounts": [{"name": name, "mountPath": path} for name, path in folders.items()],
            }
        ],
        "volumes": [{"name": name, "emptyDir": {"sizeLimit": needs.scratch}} for name in folders],
    }


def run_job(cluster: Cluster, work: Work, show: Callable[[str], None] = say) -> None:
    """Run `work` to its end; `show` gets each line of its log, and what it waits for.

    A Job with the same name that runs already is followed instead of started. Raises WharfError with one line when it
    fails (of the class that the exit code of a `wharf` command stands for); the Job is removed when it cannot start,
    or when this is interrupted and the Job is ours.
    """
    ours = _start(cluster, work, show)
    try:
        _follow(cluster, work, show)
    except KeyboardInterrupt:
        if ours:
            cluster.delete("batch/v1/Job", work.name, work.namespace)
            show(f"the Job {work.name} is removed")
        raise


def _start(cluster: Cluster, work: Work, show: Callable[[str], None]) -> bool:
    """Create the Job; return False when it runs already."""
    there = _patient(lambda: cluster.get("batch/v1/Job", work.name, work.namespace), show)
    if there is not None:
        if _ending(there) is None:
            show(f"the Job {work.name} runs already: this is its log")
            return False
        _patient(lambda: cluster.delete("batch/v1/Job", work.name, work.namespace, wait_s=60), show)
    _patient(lambda: cluster.apply([policy(work.namespace)]), show)
    # Where the answer to its creation was lost, the Job is there: the second try must not fail for that.
    mark = {"modelwharf.io/started": uuid.uuid4().hex}
    made = job(work)
    made["metadata"]["annotations"] |= mark

    def create() -> bool:
        known = cluster.get("batch/v1/Job", work.name, work.namespace)
        if known is None:
            cluster.create(made)
        return known is None or mark.items() <= known["metadata"]["annotations"].items()

    return _patient(create, show)


def _patient(call: Callable[[], T], show: Callable[[str], None]) -> T:
    """Return what `call` gives; an API server that is away for a moment is waited for."""
    ends, told = time.monotonic() + _AWAY_S, False
    while True:
        try:
            return call()
        except Unavailable as error:
            if time.monotonic() > ends:
                raise
            if not told:
                show(f"waits: {error.lines[0]}")
                told = True
            time.sleep(_POLL_S)


def _ending(found: Json) -> Json | None:
    """Return the condition that ended a Job, None while it runs."""
    for condition in (found.get("status") or {}).get("conditions") or []:
        if condition["type"] in {"Complete", "Failed"} and condition["status"] == "True":
            return condition
    return None


def _follow(cluster: Cluster, work: Work, show: Callable[[str], None]) -> None:
    """Show the log until the Job ends; raises when it does not end well."""
    watch, pod = _Watch(cluster, work, show), None
    while True:
        found = _patient(lambda: cluster.get("batch/v1/Job", work.name, work.namespace), show)
        if found is None:
            raise Unavailable(f"the Job {work.name} is gone: somebody removed it", tip="run the same command again")
        pod = watch.pod() or pod
        if pod is not None and _has_begun(pod):
            watch.log(pod)
        ended = _ending(found)
        if ended is not None and ended["type"] == "Complete":
            return
        if ended is not None:
            raise _failure(work, ended, watch.pod() or pod)
        watch.require_hope(found, pod)
        time.sleep(_POLL_S)


class _Watch:
    """What has been shown of a Job, and since when it does not move."""

    def __init__(self, cluster: Cluster, work: Work, show: Callable[[str], None]) -> None:
        self._cluster, self._work, self._show = cluster, work, show
        self._lines = 0
        self._waits = ""
        self._stuck: float | None = None  # since when it waits for what seems not to come

    def pod(self) -> Json | None:
        """Return the newest pod of the Job, None before there is one."""
        chosen = f"batch.kubernetes.io/job-name={self._work.name}"
        found = _patient(lambda: self._cluster.list("v1/Pod", self._work.namespace, chosen), self._show)
        return max(found, key=lambda pod: str(pod["metadata"]["creationTimestamp"]), default=None)

    def log(self, pod: Json) -> None:
        """Show what the pod says until it ends; the connection may break, and the next call goes on behind it."""
        name, container = pod["metadata"]["name"], self._work.step
        try:
            lines = self._cluster.logs(name, self._work.namespace, container=container, follow=True)
            for line in itertools.islice(lines, self._lines, None):
                self._lines += 1
                self._show(line)
        except (Unavailable, Mistake):
            return  # the pod is gone or the API server is away for a moment: the Job itself is asked next

    def require_hope(self, found: Json, pod: Json | None) -> None:
        """Say what a Job waits for; raises, and removes the Job, when it waits for what will not come."""
        reason, line = _waiting(found, pod)
        if line and line != self._waits:
            self._waits = line
            self._show(f"waits: {line}")
        if reason not in _STUCK:
            self._stuck = None
            return
        self._stuck = self._stuck or time.monotonic()
        if time.monotonic() - self._stuck > _PATIENCE_S:
            self._cluster.delete("batch/v1/Job", self._work.name, self._work.namespace)
            raise Unavailable(
                f"the Job {self._work.name} cannot start: {line}",
                tip="can the nodes reach the registry of the image? `wharf status` and the registry's log may say more",
            )


def _has_begun(pod: Json) -> bool:
    states = [one.get("state") or {} for one in (pod.get("status") or {}).get("containerStatuses") or []]
    return any("running" in state or "terminated" in state for state in states)


def _waiting(found: Json, pod: Json | None) -> tuple[str, str]:
    """Return why nothing runs yet, as Kubernetes' word for it and as a line; empty when it does."""
    if (found["spec"].get("suspend")) is True:
        queue = (found["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name", "")
        return "Suspended", f"suspended, the queue {queue} has no room yet" if queue else "suspended"
    if pod is None:
        return "", ""
    status: Json = pod.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return str(condition.get("reason", "")), f"no node takes it: {_one_line(condition.get('message', ''))}"
    for one in status.get("containerStatuses") or []:
        waiting = (one.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") in _STUCK:
            return str(waiting["reason"]), f"{waiting['reason']}: {_one_line(waiting.get('message') or one['image'])}"
        if waiting:
            return str(waiting.get("reason", "")), "its node makes the container: the image is pulled first"
    return "", ""


def _failure(work: Work, condition: Json, pod: Json | None) -> WharfError:
    """Return the error that says in one line why a Job failed."""
    head = f"the Job {work.name}"
    if condition.get("reason") == "DeadlineExceeded":
        minutes = work.needs.deadline_minutes
        return Unavailable(
            f"{head} was ended after {minutes} minutes, its deadline",
            tip=f"raise jobs.deadline_minutes in models/{work.model}/model.yaml",
        )
    status: Json = (pod or {}).get("status") or {}
    ended: Json = next(
        (
            state
            for one in status.get("containerStatuses") or []
            if (state := (one.get("state") or {}).get("terminated"))
        ),
        {},
    )
    if ended.get("reason") == "OOMKilled":
        return Unavailable(
            f"{head} ran out of memory: it may use {work.needs.memory}",
            tip=f"raise jobs.memory in models/{work.model}/model.yaml",
        )
    if status.get("reason"):  # Evicted, NodeShutdown, …
        return Unavailable(
            f"{head}: its pod was ended: {status['reason']}: {_one_line(status.get('message', ''))}",
            tip="run the same command again; when the disk was full, raise jobs.scratch in its model.yaml",
        )
    code = ended.get("exitCode")
    if code is None:
        why = _one_line(condition.get("message") or condition.get("reason") or "nobody knows why")
        return Unavailable(f"{head} failed: {why}", tip=f"see `kubectl -n {work.namespace} describe job {work.name}`")
    kind = _CODES.get(int(code), Unavailable)
    return kind(
        f"{head} ended with code {code}; what it said is above", tip="run the same command again when it is fixed"
    )


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()[:300]
