"""What dies or goes away under traffic: pods, nodes that are drained, Argo CD's parts, etcd and the API server.

They leave the old version of tumor in staging, with its two replicas Ready.
"""

from __future__ import annotations

import time

import pytest

from ci.errors import Unavailable
from tests.cluster.cluster import NEW, OLD, Cluster
from tests.cluster.kill import kill_part, kill_pod

pytestmark = pytest.mark.cluster

CONVERGES_S = 240


def test_a_deleted_pod_costs_no_request(tumor: Cluster) -> None:
    with tumor.traffic("staging", rate=50) as load:
        victim = tumor.ready_pods("staging")[0]["metadata"]
        assert tumor.kube.delete("v1/Pod", victim["name"], victim["namespace"])

        def replaced() -> bool:
            names = {pod["metadata"]["name"] for pod in tumor.pods("staging", living=False)}
            return victim["name"] not in names and len(tumor.ready_pods("staging")) == 2

        tumor.wait("the deleted pod gone and another one Ready", replaced, 120)
        load.counts().require_no_loss()


def test_a_drained_node_costs_no_request(tumor: Cluster) -> None:
    """Every node with a pod of tumor is cordoned, and its pods evicted one after the other, as `kubectl drain` does."""
    first, second = (pod["metadata"] for pod in tumor.ready_pods("staging"))
    nodes = [node["metadata"]["name"] for node in tumor.kube.list("v1/Node")]
    with tumor.traffic("staging", rate=50) as load:
        try:
            for node in nodes:
                tumor.kube.patch("v1/Node", node, None, {"spec": {"unschedulable": True}})
            tumor.evict(first["name"], first["namespace"])
            # Its replacement has nowhere to go, and the budget allows one pod to be missing.
            with pytest.raises(Unavailable, match="disruption budget"):
                tumor.evict(second["name"], second["namespace"])
        finally:
            for node in nodes:
                tumor.kube.patch("v1/Node", node, None, {"spec": {"unschedulable": None}})

        def evicted() -> bool:
            try:
                tumor.evict(second["name"], second["namespace"])
            except Unavailable as error:
                if "disruption budget" not in error.lines[0]:
                    raise
                return False
            return True

        tumor.wait("the second pod evicted, once the first was replaced", evicted, 120, 1.0)
        tumor.wait_live("staging", OLD)
        assert not {first["name"], second["name"]} & {pod["metadata"]["name"] for pod in tumor.pods("staging")}
        load.counts().require_no_loss()


def test_argo_cd_killed_in_the_middle_of_a_rollout(tumor: Cluster) -> None:
    """SIGKILL to each part of Argo CD: before it hears of the commit, while it syncs, and while the pods roll."""
    with tumor.traffic("staging") as load:
        begun = time.monotonic()
        kill_pod(tumor, "argocd-repo-server")
        kill_pod(tumor, "argocd-applicationset-controller")
        tumor.user.wharf("promote", "tumor", "--to", "staging", "--version", str(NEW))
        kill_pod(tumor, "argocd-application-controller")
        tumor.wait(f"a pod of version {NEW}", lambda: _pods_of(tumor, NEW), CONVERGES_S)
        kill_pod(tumor, "argocd-redis")
        tumor.wait_live("staging", NEW, CONVERGES_S)
        tumor.record("promote with all of Argo CD killed: until Healthy", time.monotonic() - begun)
        load.counts().require_no_loss()


def test_etcd_and_the_api_server_killed_in_the_middle_of_a_rollout(tumor: Cluster) -> None:
    """The way back of the test before it, so that each starts from a version that is to be replaced."""
    if tumor.access.provider != "node":
        tumor.user.wharf("rollback", "tumor", "--env", "staging")
        tumor.wait_live("staging", OLD)
        pytest.skip(f"etcd and the API server of provider {tumor.access.provider} are not processes of this machine")
    with tumor.traffic("staging") as load:
        begun = time.monotonic()
        tumor.user.wharf("rollback", "tumor", "--env", "staging")
        tumor.wait(f"a pod of version {OLD}", lambda: _pods_of(tumor, OLD), CONVERGES_S)
        tumor.record("etcd killed: until it is Ready again", kill_part("etcd"))
        tumor.wait(f"two pods of version {OLD}", lambda: len(_pods_of(tumor, OLD)) == 2, CONVERGES_S)
        tumor.record("API server killed: until it is Ready again", kill_part("kube-apiserver"))
        tumor.wait_live("staging", OLD, CONVERGES_S)
        tumor.record("rollback with etcd and the API server killed: until Healthy", time.monotonic() - begun)
        load.counts().require_no_loss()


def _pods_of(cluster: Cluster, version: int) -> list[str]:
    label = "app.kubernetes.io/version"
    return [
        pod["metadata"]["name"] for pod in cluster.pods("staging") if pod["metadata"]["labels"][label] == str(version)
    ]
