from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from ci.cluster import readiness
from ci.cluster.kube import Kube
from ci.errors import Unavailable
from tests.ci.cluster.kube_double import KubeDouble

Json = dict[str, Any]
SELECTOR = {"app": "server"}


@pytest.fixture
def double(tmp_path: Path) -> Generator[KubeDouble]:
    with KubeDouble(tmp_path) as found:
        yield found


@pytest.fixture
def kube(double: KubeDouble) -> Generator[Kube]:
    with Kube(double.kubeconfig) as found:
        yield found


def deployment(generation: int = 1, wanted: int = 1, **status: Any) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "server", "namespace": "one", "generation": generation},
        "spec": {"replicas": wanted, "selector": {"matchLabels": SELECTOR}},
        "status": status,
    }


def pod(*statuses: Json, conditions: list[Json] | None = None, name: str = "server-1") -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "one", "labels": SELECTOR, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {},
        "status": {"phase": "Pending", "conditions": conditions or [], "containerStatuses": list(statuses)},
    }


def container(state: Json, **more: Any) -> Json:
    return {"name": "main", "ready": False, "restartCount": 0, "state": state, **more}


def why(kube: Kube) -> str:
    return readiness.why_not(kube, "Deployment", "server", "one")


ALL = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}


@pytest.mark.parametrize(
    ("workload", "ready"),
    [
        (deployment(**ALL), True),
        (deployment(generation=2, **ALL), False),  # the newest spec was not looked at yet
        (deployment(**{**ALL, "replicas": 2}), False),  # an old pod is still there
        (deployment(**{**ALL, "updatedReplicas": 0}), False),
        (deployment(**{**ALL, "availableReplicas": 0}), False),
        (deployment(wanted=2, **ALL), False),
        (deployment(wanted=0, observedGeneration=1), True),
        (deployment(), False),
    ],
)
def test_ready_is_all_of_the_newest_and_nothing_else(workload: Json, ready: bool) -> None:
    assert readiness.is_ready(workload) is ready


def test_a_stateful_set_counts_its_ready_pods() -> None:
    counts = {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1}
    one = {**deployment(**counts, readyReplicas=1), "kind": "StatefulSet"}
    assert readiness.is_ready(one)
    assert not readiness.is_ready({**one, "status": counts})


def test_it_returns_when_all_is_ready(kube: Kube, double: KubeDouble) -> None:
    double.add(deployment(**ALL))
    readiness.wait_ready(kube, "Deployment", "server", "one", 5)


def test_after_the_time_it_says_in_one_line_which_pod_and_why(
    kube: Kube, double: KubeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readiness, "_LOOK_S", 0.01)
    crashed = container(
        {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
        restartCount=2,
        lastState={"terminated": {"exitCode": 3}},
    )
    double.add(deployment(**{**ALL, "availableReplicas": 0}), pod(crashed))
    double.logs["one", "server-1<"] = "starting\nno such database\n\n"
    with pytest.raises(Unavailable) as fault:
        readiness.wait_ready(kube, "Deployment", "server", "one", 0.05)
    assert fault.value.lines == [
        "one/server is not Ready after 0 seconds: pod server-1: container main: CrashLoopBackOff "
        "(it ended with code 3); it said: no such database"
    ]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (
            pod(conditions=[{"type": "PodScheduled", "status": "False", "message": "0/1 nodes: Insufficient cpu"}]),
            "pod server-1: no node takes it: 0/1 nodes: Insufficient cpu",
        ),
        (
            pod(container({"waiting": {"reason": "ErrImagePull", "message": "not\n found"}})),
            "pod server-1: container main: ErrImagePull: not found",
        ),
        (
            pod(container({"waiting": {"reason": "CreateContainerConfigError", "message": "secret missing"}})),
            "pod server-1: container main: CreateContainerConfigError: secret missing",
        ),
        (pod(container({"waiting": {"reason": "ContainerCreating"}})), "pod server-1: container main is not ready yet"),
        (
            pod(container({"terminated": {"exitCode": 1, "reason": "Error"}})),
            "container main: Error (it ended with code 1)",
        ),
    ],
)
def test_the_reason_of_a_pod(kube: Kube, double: KubeDouble, found: Json, said: str) -> None:
    double.add(deployment(), found)
    assert said in why(kube)


def test_a_pod_that_runs_but_is_not_ready_is_quoted(kube: Kube, double: KubeDouble) -> None:
    double.add(deployment(), pod(container({"running": {}})))
    double.logs["one", "server-1"] = "waiting for the database\n"
    assert why(kube) == "pod server-1: container main is not ready yet; it said: waiting for the database"


def test_long_messages_keep_their_beginning_and_their_end(kube: Kube, double: KubeDouble) -> None:
    message = "pulling " + "x" * 2000 + " not found"
    double.add(deployment(), pod(container({"waiting": {"reason": "ErrImagePull", "message": message}})))
    assert len(why(kube)) < 400
    assert "ErrImagePull: pulling" in why(kube) and why(kube).endswith("not found")


def test_pods_that_are_refused_are_told_by_their_controller(kube: Kube, double: KubeDouble) -> None:
    failed = {"type": "ReplicaFailure", "status": "True", "message": 'violates PodSecurity "restricted"'}
    double.add(deployment(conditions=[failed]))
    assert why(kube) == 'no pod can be made: violates PodSecurity "restricted"'


def test_pods_that_are_refused_are_told_by_events(kube: Kube, double: KubeDouble) -> None:
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "server.1", "namespace": "one"},
        "involvedObject": {"name": "server"},
        "type": "Warning",
        "message": "exceeded quota",
    }
    double.add(deployment(), event)
    assert why(kube) == "no pod can be made: exceeded quota"


def test_what_does_not_exist_is_said(kube: Kube) -> None:
    assert why(kube) == "it does not exist"


def test_an_api_server_that_went_away_is_no_second_fault(kube: Kube, double: KubeDouble) -> None:
    double.stop()
    assert why(kube).startswith("nothing more is known (the cluster's API server")
