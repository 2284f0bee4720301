"""The loop on real Kubernetes with real Argo CD, as a user types it: one story in order, on the session's cluster."""

from __future__ import annotations

import json
import time

import pytest
import yaml

from ci.withdraw import withdraw
from tests.cluster.cluster import ENVIRONMENTS, NEW, OLD, Cluster, body

pytestmark = pytest.mark.cluster

ROLLBACK_S = 60
MAIN_PARTS = ("argocd-application-controller", "argocd-applicationset-controller", "argocd-redis", "argocd-repo-server")


def test_the_platform_came_up_from_nothing(cluster: Cluster) -> None:
    pods = {
        pod["metadata"]["name"]: {each["type"]: each["status"] for each in pod["status"]["conditions"]}
        for namespace in ("argocd", "argo-rollouts", "modelwharf")
        for pod in cluster.kube.list("v1/Pod", namespace)
    }
    for part in (*MAIN_PARTS, "argo-rollouts", "mlflow"):
        assert any(name.startswith(part) and has["Ready"] == "True" for name, has in pods.items()), f"{part}: {pods}"
    root = cluster.wait(
        "the root application Synced and Healthy",
        lambda: (
            (found := cluster.kube.get("argoproj.io/v1alpha1/Application", "modelwharf", "argocd"))
            and found.get("status", {}).get("sync", {}).get("status") == "Synced"
            and found
        ),
        60,
    )
    assert root["spec"]["syncPolicy"]["automated"] == {"prune": True, "selfHeal": True}
    sets = cluster.kube.list("argoproj.io/v1alpha1/ApplicationSet")
    assert {one["metadata"]["name"] for one in sets} == set(ENVIRONMENTS)
    locked = cluster.kube.get("argoproj.io/v1alpha1/AppProject", "default", "argocd")
    assert locked
    assert locked["spec"]["sourceRepos"] == []


def test_the_platform_serves_nothing_yet(cluster: Cluster) -> None:
    if cluster.released("dev") is not None:
        pytest.skip("this cluster was kept from an earlier run")
    assert json.loads(cluster.user.wharf("status", "--json")) == []


def test_up_again_repairs_and_changes_nothing(cluster: Cluster) -> None:
    def running() -> dict[str, str]:
        pods = [pod for space in ("argocd", "modelwharf") for pod in cluster.kube.list("v1/Pod", space)]
        return {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in pods}

    before = running()
    begun = time.monotonic()
    cluster.user.wharf("up", "--target", "cluster", "--platform-only")
    cluster.record("`wharf up` again, with everything there", time.monotonic() - begun)
    assert running() == before


def test_a_shipped_model_answers_through_its_service(cluster: Cluster) -> None:
    if cluster.released("dev") is None:
        begun = time.monotonic()
        cluster.user.wharf("ship", "tumor")
        cluster.record("ship tumor: train, gate, register, build an image, release", time.monotonic() - begun)
        cluster.record("… until it is Synced and Healthy in dev", cluster.wait_live("dev", OLD))
    with cluster.traffic("dev") as load:
        counts = load.counts()
    counts.require_no_loss()
    assert counts.versions == {str(cluster.released("dev")): counts.ok}


def test_it_goes_from_dev_to_staging_to_prod(cluster: Cluster) -> None:
    begun = time.monotonic()
    for environment in ("staging", "prod"):
        cluster.user.wharf("promote", "tumor", "--to", environment, "--version", str(OLD))
    for environment in ("staging", "prod"):
        cluster.wait_live(environment, OLD)
        assert len(cluster.ready_pods(environment)) == 2
    cluster.record("promote to staging and to prod, two replicas each, until Healthy", time.monotonic() - begun)
    with cluster.traffic("prod") as load:
        load.counts().require_no_loss()


def test_the_prediction_is_right(cluster: Cluster) -> None:
    """Through the Service from another pod, with the answer read and not only counted."""
    with cluster.traffic("prod", rate=1) as load:
        code = (
            "import os, sys, urllib.request as http; "
            "print(http.urlopen(http.Request(sys.argv[1], os.environ['BODY'].encode(), "
            "{'Content-Type': 'application/json'}), timeout=10).read().decode())"
        )
        answer = json.loads(cluster.kube.run(load.name, load.namespace, ["python3", "-c", code, load.url]))
    assert answer["predictions"] == ["malignant"] * len(json.loads(body(2))["rows"])
    assert (answer["model"], answer["version"]) == ("tumor", OLD)


def test_status_shows_what_argo_cd_and_kubernetes_say(tumor: Cluster) -> None:
    rows = {row["environment"]: row for row in json.loads(tumor.user.wharf("status", "tumor", "--json"))}
    assert list(rows) == list(ENVIRONMENTS)
    for environment, version in (("dev", NEW), ("staging", OLD), ("prod", OLD)):
        row = rows[environment]
        assert (row["target"], row["version"], row["desired"]) == ("cluster", version, version)
        assert (row["sync"], row["health"]) == ("Synced", "Healthy")
        names = {pod["metadata"]["name"] for pod in tumor.pods(environment)}
        assert names
        assert names == {pod["name"] for pod in row["pods"] if pod["status"] != "Terminating"}
    assert "tumor" in tumor.user.wharf("status")


def test_from_a_running_pod_back_to_the_data(tumor: Cluster) -> None:
    for environment in ("dev", "prod"):
        name = tumor.pods(environment)[0]["metadata"]["name"]
        lineage = json.loads(tumor.user.wharf("lineage", f"pod/{name}", "--json"))
        assert (lineage["model"], lineage["environment"]) == ("tumor", environment)
        assert lineage["verified"] is True
        assert not [link for link in lineage["links"] if not link["ok"]]
        links = {link["link"] for link in lineage["links"]}
        assert {"release", "version", "run", "data", "commit", "evidence", "artifact", "bento"} <= links


def test_a_rolling_update_and_a_rollback_lose_no_request(tumor: Cluster) -> None:
    with tumor.traffic("staging", rate=50) as load:
        begun = time.monotonic()
        tumor.user.wharf("promote", "tumor", "--to", "staging", "--version", str(NEW))
        tumor.wait_live("staging", NEW)
        load.wait_for_version(NEW, 60)
        tumor.record("promote to staging: command until the new version alone answers", time.monotonic() - begun)
        begun = time.monotonic()
        tumor.user.wharf("rollback", "tumor", "--env", "staging")
        took = load.wait_for_first(OLD, ROLLBACK_S, begun)
        tumor.record("rollback of staging: command until the old version answers again", took)
        load.wait_for_version(OLD, 90)
        tumor.record("… until the old version alone answers", time.monotonic() - begun)
        tumor.wait_live("staging", OLD)
        counts = load.counts()
    counts.require_no_loss()
    application = tumor.application("staging")
    assert application["spec"]["syncPolicy"]["automated"] == {"prune": True, "selfHeal": True}  # left on
    subject = tumor.user.git("log", "-1", "--format=%s", tumor.main)
    assert subject == f"Roll tumor back to version {OLD} in staging"


def test_a_removed_release_is_pruned(tumor: Cluster) -> None:
    release = yaml.safe_load(tumor.read("gitops/releases/dev/tumor.yaml"))
    namespace = tumor.namespace("dev")
    begun = time.monotonic()
    assert withdraw(tumor.workspace, {("tumor", "dev")})

    def gone() -> bool:
        objects = [
            tumor.kube.get(kind, "tumor", namespace)
            for kind in ("apps/v1/Deployment", "v1/Service", "autoscaling/v2/HorizontalPodAutoscaler")
        ]
        there = tumor.kube.get("argoproj.io/v1alpha1/Application", "tumor-dev", "argocd")
        return not any([*objects, there, *tumor.pods("dev")])

    tumor.wait("nothing of tumor in dev", gone, 90)
    tumor.record("removal of a release: until its Application and objects are gone", time.monotonic() - begun)
    assert tumor.row("dev") == {}
    assert tumor.kube.get("v1/Namespace", namespace)  # the team's, not the release's
    tumor.user.wharf("promote", "tumor", "--to", "dev", "--version", str(release["version"]))
    tumor.wait_live("dev", release["version"])
