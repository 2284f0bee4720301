"""Argo CD's settings, changed in a live cluster: ours and upstream's in the same run."""

from __future__ import annotations

import time
from typing import Any

from ci.cluster.kube import Kube
from ci.cluster.readiness import wait_ready
from infra.platform import argocd
from infra.platform.argocd import NAMESPACE, Tuning

# What an installation has that nobody has tuned (v3.2 to v3.4).
PLAIN = Tuning(
    reconciliation_s=120,
    jitter_s=60,
    status_processors=20,
    operation_processors=10,
    kubectl_parallelism=20,
    repo_parallelism=0,
    application_sets=10,
    client_qps=None,
    client_burst=None,
    events=True,
    watch_all=True,
)
OURS = Tuning()
_WORKLOADS = {
    argocd.CONTROLLER: "apps/v1/StatefulSet",
    argocd.APPLICATION_SETS: "apps/v1/Deployment",
    argocd.REPO_SERVER: "apps/v1/Deployment",
}
_VARIABLES = {"ARGOCD_K8S_CLIENT_QPS", "ARGOCD_K8S_CLIENT_BURST", "ARGOCD_ENABLE_K8S_EVENT"}


def use(kube: Kube, tuning: Tuning, name: str) -> None:
    """Let Argo CD run with this tuning, which is called `name`, and wait until it does."""
    pages = kube.get("apps/v1/Deployment", argocd.SERVER, NAMESPACE) is not None
    settings = argocd.tuned(tuning, pages=pages)
    for config, data in settings.items():
        removed = {} if "resource.inclusions" in data or config != "argocd-cm" else {"resource.inclusions": None}
        kube.patch("v1/ConfigMap", config, NAMESPACE, {"data": {**data, **removed}})
    for workload, kind in _WORKLOADS.items():
        template: dict[str, Any] = _of(kube, kind, workload)["spec"]["template"]
        containers = template["spec"]["containers"]
        for container in containers:
            kept = [each for each in container.get("env") or [] if each["name"] not in _VARIABLES]
            added = [{"name": key, "value": value} for key, value in argocd.environment(workload, tuning).items()]
            container["env"] = kept + added
        marked = {"modelwharf.io/configuration": f"bench-{name}-{time.time():.0f}"}
        change = {"metadata": {"annotations": marked}, "spec": {"containers": containers}}
        kube.patch(kind, workload, NAMESPACE, {"spec": {"template": change}})
    for workload, kind in _WORKLOADS.items():
        wait_ready(kube, kind.rpartition("/")[2], workload, NAMESPACE, 180)


def _of(kube: Kube, kind: str, name: str) -> dict[str, Any]:
    found = kube.get(kind, name, NAMESPACE)
    assert found, f"there is no {name}"
    return found
