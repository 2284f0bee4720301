"""What Argo CD is asked again: only where its word cannot be the newest, and not all the time."""

from __future__ import annotations

from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ci.cluster.kube import Kube
from ci.cluster.nudge import nudge
from tests.ci.cluster.argo_objects import application, application_set, deployment
from tests.ci.cluster.kube_double import KubeDouble

KEY = ("tumor", "dev")
ROLLED_OUT = {"replicas": 1}


@pytest.fixture
def cluster(tmp_path: Path) -> Generator[KubeDouble]:
    with KubeDouble(tmp_path) as double:
        yield double


def annotations(cluster: KubeDouble, kind: str, name: str) -> dict[str, Any]:
    return cluster.of(f"argoproj.io/v1alpha1/{kind}", name, "argocd")["metadata"].get("annotations") or {}


def asked(
    cluster: KubeDouble, app: dict[str, Any], rollout: dict[str, Any] | None = None, behind: bool = False
) -> bool:
    cluster.add(app)
    deployments = {KEY: rollout} if rollout else {}
    said = nudge(Kube(cluster.kubeconfig), "argocd", {KEY: app}, deployments, {KEY} if behind else set(), [])
    there = annotations(cluster, "Application", "tumor-dev").get("argocd.argoproj.io/refresh") == "normal"
    assert bool(said.applications) == there
    return there


def test_what_is_well_is_left_alone(cluster: KubeDouble) -> None:
    assert not asked(cluster, application(*KEY), deployment(*KEY, 3, **ROLLED_OUT))


def test_a_commit_that_was_not_seen_is_asked_about(cluster: KubeDouble) -> None:
    assert asked(cluster, application(*KEY), behind=True)


def test_not_again_within_seconds(cluster: KubeDouble) -> None:
    now = datetime.now(UTC).isoformat()
    assert not asked(cluster, application(*KEY, reconciledAt=now), behind=True)


def test_a_rollout_that_is_over_is_asked_about_and_one_that_goes_on_is_not(cluster: KubeDouble) -> None:
    goes_on = deployment(*KEY, 3, replicas=2)
    assert not asked(cluster, application(*KEY, health="Progressing"), goes_on)
    assert asked(cluster, application(*KEY, health="Progressing"), deployment(*KEY, 3, **ROLLED_OUT))


def test_a_release_without_an_application_is_asked_about_at_its_set(cluster: KubeDouble) -> None:
    cluster.add(application_set("dev"))
    nudge(Kube(cluster.kubeconfig), "argocd", {}, {}, set(), [KEY])
    found = annotations(cluster, "ApplicationSet", "dev")
    assert found == {"argocd.argoproj.io/application-set-refresh": "true"}


def test_who_may_not_write_only_looks(tmp_path: Path) -> None:
    with KubeDouble(tmp_path) as cluster:
        kube = Kube(cluster.kubeconfig)
        cluster.add(application(*KEY))
    nudge(kube, "argocd", {KEY: application(*KEY)}, {}, {KEY}, [])  # nobody answers: no error either
