"""What goes wrong on a cluster, and that it is put right or stays harmless: edits by hand, broken versions, forbidden
objects. Each test leaves tumor as it found it: the new version in dev, the old one in staging and prod.

The origin's check refuses broken manifests, so the tests commit them straight into the bare repository, as somebody
who goes around the check.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
import yaml

from ci.cluster.kube import Rejected
from tests.cluster.cluster import NEW, OLD, Cluster
from tests.cluster.traffic import pod as harmless_pod

pytestmark = pytest.mark.cluster

SELF_HEAL_S = 60  # the aim is 15: what it took is printed at the end
NO_SUCH_DIGEST = "sha256:" + "0" * 64
DEPLOYMENT = "apps/v1/Deployment"


def rendered(environment: str, name: str = "deployment.yaml") -> str:
    return f"gitops/rendered/{environment}/tumor/{name}"


def broken_deployment(cluster: Cluster, environment: str, change: Callable[[dict[str, Any]], None]) -> str:
    """Return the rendered Deployment of `environment` with its container changed.

    Kubernetes calls a rollout failed after four minutes; here after twenty seconds, so that the test need not wait.
    """
    manifest = yaml.safe_load(cluster.read(rendered(environment)))
    manifest["spec"]["progressDeadlineSeconds"] = 20
    change(manifest["spec"]["template"]["spec"]["containers"][0])
    return yaml.safe_dump(manifest, sort_keys=False)


def test_edits_by_hand_are_reverted(tumor: Cluster) -> None:
    namespace, image = tumor.namespace("staging"), tumor.deployment("staging")["spec"]["template"]["spec"]
    wanted = image["containers"][0]
    container = {"image": wanted["image"].partition("@")[0] + "@" + NO_SUCH_DIGEST}
    with_env = {"env": [{**each, "value": "7"} if each["name"] == "WHARF_VERSION" else each for each in wanted["env"]]}
    edits: dict[str, dict[str, Any]] = {
        "replicas": {"spec": {"replicas": 3}},
        "image": {"spec": {"template": {"spec": {"containers": [{**wanted, **container}]}}}},
        "variables": {"spec": {"template": {"spec": {"containers": [{**wanted, **with_env}]}}}},
    }
    with tumor.traffic("staging") as load:
        for what, patch in edits.items():
            tumor.kube.patch(DEPLOYMENT, "tumor", namespace, patch)
            begun = time.monotonic()

            def reverted() -> bool:
                spec = tumor.deployment("staging")["spec"]
                now = spec["template"]["spec"]["containers"][0]
                return (spec["replicas"], now["image"], now["env"]) == (2, wanted["image"], wanted["env"])

            tumor.wait(f"the edit of {what} reverted", reverted, SELF_HEAL_S, 0.2)
            tumor.record(f"edit of {what} by hand: until it is reverted", time.monotonic() - begun)
        tumor.wait_live("staging", OLD)
        load.counts().require_no_loss()


def test_a_service_that_is_deleted_by_hand_comes_back(tumor: Cluster) -> None:
    assert tumor.kube.delete("v1/Service", "tumor", tumor.namespace("staging"))
    begun = time.monotonic()
    tumor.wait(
        "the deleted Service back",
        lambda: tumor.kube.get("v1/Service", "tumor", tumor.namespace("staging")),
        SELF_HEAL_S,
        0.2,
    )
    tumor.record("Service deleted by hand: until it is back", time.monotonic() - begun)
    tumor.wait_live("staging", OLD)

    def answers() -> bool:
        with tumor.traffic("staging", starts=False) as load:
            counts = load.counts()
        return counts.ok > 0 and counts.failed == 0

    # It has another address now, and DNS servers remember the old one for some seconds.
    tumor.wait("predictions through the new Service", answers, SELF_HEAL_S)


def _unknown_image(container: dict[str, Any]) -> None:
    container["image"] = container["image"].replace("/tumor@", "/nosuchmodel@")


def _wrong_digest(container: dict[str, Any]) -> None:
    container["image"] = container["image"].partition("@")[0] + "@" + NO_SUCH_DIGEST


def _flipped_byte(container: dict[str, Any]) -> None:
    """Make the release name another digest than that of the artifact in the image."""
    for variable in container["env"]:
        if variable["name"] == "WHARF_ARTIFACT_SHA256":
            first = variable["value"][0]
            variable["value"] = ("0" if first != "0" else "1") + variable["value"][1:]


def _says(cluster: Cluster, environment: str, word: str, health: str = "") -> bool:
    """Tell whether `wharf status` is not content with tumor and names `word`."""
    row = cluster.row(environment)
    return word in row.get("message", "") and row["health"] != "Healthy" and health in row["health"]


def test_broken_versions_leave_the_old_one_serving(tumor: Cluster) -> None:
    """One kind of broken version in each environment, at once: each says why, and none costs a request."""
    broken = {
        "dev": (_unknown_image, NEW, "nosuchmodel"),
        "staging": (_wrong_digest, OLD, "0000000000"),
        "prod": (_flipped_byte, OLD, "sha256"),
    }
    good = tumor.main
    serving = {environment: {pod["metadata"]["name"] for pod in tumor.pods(environment)} for environment in broken}
    paths = [rendered(environment) for environment in broken]
    with ExitStack() as stack:
        loads = {environment: stack.enter_context(tumor.traffic(environment)) for environment in broken}
        changes = {rendered(name): broken_deployment(tumor, name, change) for name, (change, _, _) in broken.items()}
        tumor.bypass("Versions that do not start", changes)
        begun = time.monotonic()
        try:
            for health in ("", "Degraded"):
                for environment, (change, _, word) in broken.items():
                    what = f"{health or 'a reason'} with {word!r} in {environment}"
                    tumor.wait(what, partial(_says, tumor, environment, word, health), 120, 0.5)
                    kind = change.__name__.replace("_", " ")
                    told = f"broken version,{kind}: until status says {health or 'why'}"
                    tumor.record(told, time.monotonic() - begun)
            for environment, (_, version, _) in broken.items():
                counts = loads[environment].counts()
                counts.require_no_loss()
                assert counts.versions == {str(version): counts.ok}
                ready = {pod["metadata"]["name"] for pod in tumor.ready_pods(environment)}
                assert serving[environment] <= ready, f"{environment}: pods of the old version went away"
        finally:
            tumor.restore(good, paths, "Take back the versions that do not start")
        for environment, (_, version, _) in broken.items():
            tumor.wait_live(environment, version)
            loads[environment].counts().require_no_loss()
            assert serving[environment] <= {pod["metadata"]["name"] for pod in tumor.ready_pods(environment)}


def test_a_project_refuses_foreign_namespaces_and_cluster_scoped_kinds(tumor: Cluster) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "intruder", "namespace": "default"}}
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "intruder"},
        "rules": [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}],
    }
    inside = {**account, "metadata": {"name": "intruder", "namespace": tumor.namespace("dev")}}
    forbidden = {"foreign.yaml": (account, "default"), "scope.yaml": (role, "ClusterRole")}
    for name, (manifest, word) in forbidden.items():
        path = rendered("dev", name)
        tumor.bypass(f"Something for {word}", {path: yaml.safe_dump(manifest)})

        def refused() -> bool:
            row = tumor.row("dev")
            return row.get("sync") != "Synced" and word in row.get("message", "")  # noqa: B023

        try:
            tumor.wait(f"status names {word}", refused, 60, 1.0)
            assert tumor.kube.get("v1/ServiceAccount", "intruder", "default") is None
            assert tumor.kube.get("rbac.authorization.k8s.io/v1/ClusterRole", "intruder") is None
        finally:
            tumor.bypass(f"Nothing for {word}", {path: None})
        tumor.wait_live("dev", NEW)
    # The same kind of object in the team's own namespace is let in: the project was what refused it.
    path = rendered("dev", "inside.yaml")
    tumor.bypass("An account of the team's own", {path: yaml.safe_dump(inside)})
    there = ("v1/ServiceAccount", "intruder", tumor.namespace("dev"))
    tumor.wait("an allowed object", lambda: tumor.kube.get(*there), 60)
    tumor.bypass("No account of the team's own", {path: None})
    tumor.wait("the allowed object pruned", lambda: tumor.kube.get(*there) is None, 60)
    tumor.wait_live("dev", NEW)


def test_a_pod_that_breaks_the_restricted_profile_is_refused(tumor: Cluster) -> None:
    allowed = harmless_pod("restricted", tumor.namespace("dev"), tumor.image, ["http://localhost", "1"], "{}")
    root = {**allowed, "spec": {**allowed["spec"], "securityContext": {"runAsUser": 0}}}
    host = {**allowed, "spec": {**allowed["spec"], "hostNetwork": True}}
    volume = {"name": "disk", "hostPath": {"path": "/"}}
    disk = {**allowed, "spec": {**allowed["spec"], "volumes": [volume]}}
    for broken, word in ((root, "runAsNonRoot"), (host, "host namespaces"), (disk, "hostPath")):
        with pytest.raises(Rejected, match=word) as refused:
            tumor.kube.create(broken)
        assert refused.value.status == 403
        assert "PodSecurity" in refused.value.lines[0]
    tumor.kube.create(allowed)
    assert tumor.kube.delete("v1/Pod", "restricted", tumor.namespace("dev"))
