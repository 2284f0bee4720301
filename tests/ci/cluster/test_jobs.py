"""Jobs: the object, checked by Kubernetes' own schema, and what a user is told of one that does not end well."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import kubernetes_validate
import pytest

from ci.cluster import jobs
from ci.errors import Mistake, Refusal, Unavailable, WharfError
from models.job_settings import Jobs, Toleration

Json = dict[str, Any]
IMAGE = f"wharf.local/trainer@sha256:{'1' * 64}"


def work(**changes: Any) -> jobs.Work:
    facts: Json = {
        "name": jobs.name_of("train", "tumor", "f" * 64),
        "model": "tumor",
        "team": "diagnostics",
        "step": "train",
        "image": IMAGE,
        "command": ("wharf", "train", "tumor"),
        "needs": Jobs(),
        "commit": "c" * 40,
        "env": {"MLFLOW_TRACKING_URI": jobs.TRACKING_URI},
        "writable": ("/home/wharf/.wharf",),
        "notes": {"fingerprint": "f" * 64},
    }
    return jobs.Work(**{**facts, **changes})


def gpu_needs() -> Jobs:
    return Jobs(
        cpu="4",
        memory="16Gi",
        gpu=2,
        queue="gpus",
        node_selector={"pool": "gpu"},
        tolerations=[Toleration(key="team", operator="Equal", value="vision", effect="NoSchedule")],
        deadline_minutes=5,
    )


@pytest.mark.parametrize("needs", [Jobs(), Jobs(scratch="1Mi"), gpu_needs()])
def test_kubernetes_accepts_the_objects(needs: Jobs) -> None:
    for obj in (jobs.job(work(needs=needs)), jobs.policy("modelwharf")):
        kubernetes_validate.validate(json.loads(json.dumps(obj)), "1.34", strict=True)


def test_the_pod_is_restricted() -> None:
    pod = jobs.job(work())["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp", "/home/wharf/.wharf"]
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"])


def test_what_the_model_needs_stands_in_the_job() -> None:
    made = jobs.job(work(needs=gpu_needs()))
    spec, pod = made["spec"], made["spec"]["template"]["spec"]
    assert made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert (spec["backoffLimit"], spec["activeDeadlineSeconds"]) == (0, 300) and spec["ttlSecondsAfterFinished"] > 0
    assert pod["nodeSelector"] == {"pool": "gpu"}
    assert pod["tolerations"] == [
        {"key": "team", "operator": "Equal", "value": "vision", "effect": "NoSchedule"},
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
    ]
    limits = pod["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == 2 and limits["memory"] == "16Gi"
    assert made["metadata"]["annotations"]["modelwharf.io/commit"] == "c" * 40
    assert "kueue.x-k8s.io/queue-name" not in jobs.job(work())["metadata"]["labels"]


def test_jobs_reach_mlflow_and_dns_and_nothing_else() -> None:
    policy = jobs.policy("modelwharf")["spec"]
    assert (
        policy["podSelector"]["matchLabels"].items()
        <= jobs.job(work())["spec"]["template"]["metadata"]["labels"].items()
    )
    assert policy["policyTypes"] == ["Ingress", "Egress"] and policy["ingress"] == []
    ports = sorted({port["port"] for rule in policy["egress"] for port in rule["ports"]})
    assert ports == [53, 1053, 5000]
    assert all(rule["to"] for rule in policy["egress"])  # an empty one would be everywhere


def test_the_name_says_what_it_does() -> None:
    assert jobs.name_of("train", "tumor", "a") == jobs.name_of("train", "tumor", "a")
    assert jobs.name_of("train", "tumor", "a") != jobs.name_of("train", "tumor", "b")
    assert len(jobs.name_of("train", "x" * 40, "a")) <= 63


class Cluster:
    """A cluster whose Job goes through `scenes`: what the Job and its pod look like at each look."""

    def __init__(self, scenes: list[tuple[Json, Json | None]], log: list[str] | None = None, cut: int = 0) -> None:
        self.scenes, self.log, self.cut = scenes, log or [], cut
        self.job: Json | None = None
        self.applied: list[Json] = []
        self.deleted: list[str] = []

    def get(self, kind: str, name: str, namespace: str | None = None) -> Json | None:
        if self.job is None:
            return None
        if len(self.scenes) > 1:
            self.scene = self.scenes.pop(0)
        else:
            self.scene = self.scenes[0]
        return {**self.job, "status": self.scene[0]}

    def list(self, kind: str, namespace: str | None = None, labels: str | None = None) -> list[Json]:
        assert labels == f"batch.kubernetes.io/job-name={work().name}"
        pod = self.scene[1]
        meta = {"name": "pod-1", "creationTimestamp": "2026-01-01T00:00:00Z"}
        return [] if pod is None else [{"metadata": meta, "status": pod}]

    def create(self, obj: Mapping[str, Any]) -> Json:
        self.job = dict(obj)
        return self.job

    def apply(self, objects: list[Json]) -> None:
        self.applied += objects

    def delete(self, kind: str, name: str, namespace: str | None = None, *, wait_s: float = 0) -> bool:
        self.deleted.append(name)
        self.job = None
        return True

    def logs(self, pod: str, namespace: str, *, container: str | None = None, follow: bool = False) -> Iterator[str]:
        assert (pod, container) == ("pod-1", "train")
        cut, self.cut = self.cut, 0
        yield from self.log[: cut or None]
        if cut:
            raise Unavailable("the API server went away")


def state(**kind: Json) -> Json:
    return {"containerStatuses": [{"image": IMAGE, "state": kind}]}


def ended(kind: str, reason: str = "") -> Json:
    return {"conditions": [{"type": kind, "status": "True", "reason": reason, "message": f"{reason} it is"}]}


RUNNING = state(running={"startedAt": "now"})


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    monkeypatch.setattr(jobs, "_PATIENCE_S", 0.02)


def run(cluster: Cluster) -> list[str]:
    shown: list[str] = []
    jobs.run_job(cluster, work(), shown.append)
    return shown


def test_the_log_is_shown_once_whatever_breaks() -> None:
    log = [f"line {i}" for i in range(5)]
    cluster = Cluster([({}, None), ({}, RUNNING), ({}, RUNNING), (ended("Complete"), state(terminated={}))], log, cut=3)
    assert run(cluster) == log
    assert cluster.job is not None and cluster.deleted == []  # who wants may look at it until it goes by itself
    assert [obj["kind"] for obj in cluster.applied] == ["NetworkPolicy"]


def pulling(reason: str) -> Json:
    return state(waiting={"reason": reason, "message": "not\nfound"})


FAULTS: list[tuple[str, Callable[[], Cluster], type[WharfError], str]] = [
    (
        "pull",
        lambda: Cluster([({}, pulling("ErrImagePull")), *[({}, pulling("ImagePullBackOff")) for _ in range(100_000)]]),
        Unavailable,
        "cannot start: ImagePullBackOff: not found",
    ),
    (
        "memory",
        lambda: Cluster(
            [(ended("Failed", "BackoffLimitExceeded"), state(terminated={"reason": "OOMKilled", "exitCode": 137}))]
        ),
        Unavailable,
        "ran out of memory: it may use 2Gi",
    ),
    (
        "evicted",
        lambda: Cluster([(ended("Failed", "BackoffLimitExceeded"), {"reason": "Evicted", "message": "disk is full"})]),
        Unavailable,
        "its pod was ended: Evicted: disk is full",
    ),
    (
        "deadline",
        lambda: Cluster([(ended("Failed", "DeadlineExceeded"), None)]),
        Unavailable,
        "was ended after 60 minutes, its deadline",
    ),
    (
        "mistake",
        lambda: Cluster([(ended("Failed", "BackoffLimitExceeded"), state(terminated={"exitCode": 2}))]),
        Mistake,
        "ended with code 2; what it said is above",
    ),
    (
        "refusal",
        lambda: Cluster([(ended("Failed", "BackoffLimitExceeded"), state(terminated={"exitCode": 3}))]),
        Refusal,
        "ended with code 3; what it said is above",
    ),
    (
        "nothing known",
        lambda: Cluster([(ended("Failed", "FailedJobValidation"), None)]),
        Unavailable,
        "failed: FailedJobValidation it is",
    ),
]


@pytest.mark.parametrize(("make", "kind", "line"), [fault[1:] for fault in FAULTS], ids=[fault[0] for fault in FAULTS])
def test_a_failure_is_one_clear_line(make: Callable[[], Cluster], kind: type[WharfError], line: str) -> None:
    with pytest.raises(kind) as raised:
        run(make())
    assert raised.value.lines == [f"the Job {work().name} {line}"] or raised.value.lines == [
        f"the Job {work().name}: {line}"
    ]
    assert raised.value.tip


def test_what_cannot_start_is_removed() -> None:
    cluster = FAULTS[0][1]()
    with pytest.raises(Unavailable):
        run(cluster)
    assert cluster.deleted == [work().name]


def test_what_it_waits_for_is_said_once() -> None:
    blocked = {
        "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no cpu"}]
    }
    making = state(waiting={"reason": "ContainerCreating"})
    scenes = [({}, blocked), ({}, blocked), ({}, making), ({}, making), ({}, RUNNING), (ended("Complete"), RUNNING)]
    assert run(Cluster(scenes, ["done"])) == [
        "waits: no node takes it: no cpu",
        "waits: its node makes the container: the image is pulled first",
        "done",
    ]


def test_a_queued_job_says_so() -> None:
    cluster = Cluster([({}, None), ({}, None), (ended("Complete"), RUNNING)], ["done"])
    create = cluster.create

    def suspended(obj: Mapping[str, Any]) -> Json:
        made = create(obj)
        made["spec"] = {**made["spec"], "suspend": True}
        return made

    cluster.create = suspended  # type: ignore[method-assign]
    shown: list[str] = []
    jobs.run_job(cluster, work(needs=Jobs(queue="gpus")), shown.append)
    assert shown == ["waits: suspended, the queue gpus has no room yet", "done"]


def test_ctrl_c_removes_the_job_that_was_started_and_no_other() -> None:
    def interrupted(line: str) -> None:
        if line.startswith("line"):
            raise KeyboardInterrupt

    cluster = Cluster([({}, RUNNING)], ["line"])
    with pytest.raises(KeyboardInterrupt):
        jobs.run_job(cluster, work(), interrupted)
    assert cluster.deleted == [work().name]

    other = Cluster([({}, RUNNING)], ["line"])
    other.create(jobs.job(work()))  # somebody else's
    with pytest.raises(KeyboardInterrupt):
        jobs.run_job(other, work(), interrupted)
    assert other.deleted == []


def test_a_job_that_ended_before_is_started_anew_and_one_that_runs_is_followed() -> None:
    cluster = Cluster([(ended("Failed"), None), ({}, RUNNING), (ended("Complete"), RUNNING)], ["done"])
    cluster.create(jobs.job(work()))
    assert run(cluster) == ["done"]
    assert cluster.deleted == [work().name]

    cluster = Cluster([({}, RUNNING), ({}, RUNNING), (ended("Complete"), RUNNING)], ["done"])
    cluster.create(jobs.job(work()))
    assert run(cluster) == [f"the Job {work().name} runs already: this is its log", "done"]
    assert cluster.deleted == [] and cluster.applied == []


def test_a_job_that_somebody_removes_is_noticed() -> None:
    cluster = Cluster([({}, RUNNING)], ["line"])
    gone = cluster.logs

    def logs(*words: Any, **more: Any) -> Iterator[str]:
        cluster.job = None
        return gone(*words, **more)

    cluster.logs = logs  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="is gone: somebody removed it"):
        run(cluster)


def test_an_api_server_that_is_away_for_a_moment_is_waited_for() -> None:
    cluster = Cluster([({}, RUNNING), ({}, RUNNING), (ended("Complete"), RUNNING)], ["done"])
    faults = {"create": 1, "get": 5, "list": 2, "apply": 1}
    for name in faults:
        real = getattr(cluster, name)

        def flaky(*words: Any, name: str = name, real: Any = real, **more: Any) -> Any:
            if name == "create":
                real(*words, **more)  # the answer is what was lost
            if faults[name]:
                faults[name] -= 1
                raise Unavailable("the cluster does not answer")
            return real(*words, **more) if name != "create" else cluster.job

        setattr(cluster, name, flaky)
    shown = run(cluster)
    assert shown[-1] == "done" and "waits: the cluster does not answer" in shown
    assert cluster.deleted == [] and not any(faults.values())


def test_an_api_server_that_stays_away_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_AWAY_S", 0.02)
    cluster = Cluster([({}, RUNNING)])

    def away(*_: Any, **__: Any) -> Any:
        raise Unavailable("the cluster does not answer")

    cluster.get = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable, match="the cluster does not answer"):
        run(cluster)
