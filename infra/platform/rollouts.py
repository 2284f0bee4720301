"""Argo Rollouts: upstream's install manifest in its own namespace, with a pinned image, hardened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.platform.kubernetes import (
    MONITORING_NAMESPACE,
    Object,
    Resources,
    container_security,
    from_namespaces,
    namespace,
    network_policy,
    placed,
    pod_security,
    pod_template,
    tcp,
)

NAMESPACE = "argo-rollouts"
NAME = "argo-rollouts"
USER = 999  # of upstream's image
_RESOURCES = Resources("20m", "64Mi", "512Mi")


@dataclass(frozen=True)
class Settings:
    """`image`: a pinned reference; upstream's install manifest says `latest`."""

    image: str
    monitoring_namespace: str = MONITORING_NAMESPACE


def objects(install: Sequence[Object], settings: Settings) -> list[Object]:
    """Return all objects of Argo Rollouts, made from upstream's at one version.

    Raises ValueError when `install` holds no controller, and when the image is not pinned.
    """
    if "@sha256:" not in settings.image and settings.image.rpartition(":")[2] in ("latest", settings.image):
        raise ValueError(f"the image of Argo Rollouts is not pinned: {settings.image}")
    kept = [one for one in placed([each for each in install if each], NAMESPACE) if one["kind"] != "Namespace"]
    workloads = [one for one in kept if one["kind"] == "Deployment" and one["metadata"]["name"] == NAME]
    if len(workloads) != 1:
        raise ValueError(f"not an install manifest of Argo Rollouts: it has {len(workloads)} Deployments '{NAME}'")
    _harden(workloads[0], settings)
    for one in kept:
        labels = one["metadata"].get("labels") or {}
        one["metadata"]["labels"] = {**labels, "app.kubernetes.io/managed-by": "modelwharf"}
    return [
        namespace(NAMESPACE),
        *kept,
        network_policy(
            NAME,
            NAMESPACE,
            ingress=[{"from": [from_namespaces(settings.monitoring_namespace)], "ports": tcp(8090)}],
        ),
    ]


def _harden(workload: Object, settings: Settings) -> None:
    pod: Object = pod_template(workload)["spec"]
    # One controller, and the old one ends before the new one starts: then none has to be elected, which takes seconds.
    workload["spec"]["strategy"] = {"type": "Recreate"}
    pod["securityContext"] = {**(pod.get("securityContext") or {}), **pod_security(USER)}
    pod["enableServiceLinks"] = False
    for container in pod["containers"]:
        container["image"] = settings.image
        container["imagePullPolicy"] = "IfNotPresent"
        container["args"] = [*(container.get("args") or []), "--leader-elect=false"]
        container["securityContext"] = {**(container.get("securityContext") or {}), **container_security()}
        resources = _RESOURCES.as_object()
        resources["limits"] |= (container.get("resources") or {}).get("limits") or {}
        container["resources"] = resources
        if probe := container.get("readinessProbe"):
            probe |= {"initialDelaySeconds": 1, "periodSeconds": 3}
