"""Objects as a cluster with Argo CD has them, with the parts of their status that `ci.cluster` reads."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]

DIGEST = f"sha256:{'ab' * 32}"
CONTROLLERS = ("application-controller", "repo-server", "redis", "applicationset-controller")


def labels(model: str, environment: str, version: int | None = None) -> dict[str, str]:
    found = {
        "app.kubernetes.io/name": model,
        "app.kubernetes.io/component": "model-server",
        "app.kubernetes.io/part-of": "modelwharf",
        "modelwharf.io/environment": environment,
        "modelwharf.io/model": model,
    }
    return found | ({"app.kubernetes.io/version": str(version)} if version else {})


def controllers(*gone: str) -> list[Json]:
    """The pods of Argo CD; those named in `gone` crash."""
    return [
        pod(
            f"argocd-{name}-0",
            "argocd",
            {"app.kubernetes.io/name": f"argocd-{name}"},
            ready=name not in gone,
            waiting="CrashLoopBackOff" if name in gone else "",
        )
        for name in CONTROLLERS
    ]


def pod(
    name: str,
    namespace: str,
    labelled: dict[str, str],
    *,
    ready: bool = True,
    waiting: str = "",
    message: str = "",
    image: str = "wharf.local/tumor@sha256:00",
    started: str = "2026-11-21T10:00:00Z",
    last: Json | None = None,
    restarts: int = 0,
    spec: Json | None = None,
    phase: str = "Running",
    conditions: list[Json] | None = None,
) -> Json:
    """A pod; `waiting` is the reason of a container that does not run."""
    state = {"waiting": {"reason": waiting, "message": message}} if waiting else {"running": {"startedAt": started}}
    container = {
        "name": "model",
        "image": image,
        "ready": ready,
        "started": ready,
        "restartCount": restarts,
        "imageID": "" if waiting == "ImagePullBackOff" else f"wharf.local/{name.partition('-')[0]}@{DIGEST}",
        "state": state,
        "lastState": {"terminated": last} if last else {},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labelled, "creationTimestamp": started},
        "spec": {"nodeName": "node-1", "containers": [{"name": "model"}], **(spec or {})},
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}, *(conditions or [])],
            "containerStatuses": [container],
        },
    }


def model_pod(model: str, environment: str, version: int, suffix: str = "a", **more: Any) -> Json:
    return pod(f"{model}-{suffix}", f"team-{environment}", labels(model, environment, version), **more)


def application(
    model: str,
    environment: str,
    *,
    sync: str = "Synced",
    health: str = "Healthy",
    revision: str = "",
    **status: Any,
) -> Json:
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Application",
        "metadata": {"name": f"{model}-{environment}", "namespace": "argocd", "labels": labels(model, environment)},
        "spec": {"source": {"path": f"gitops/rendered/{environment}/{model}"}},
        "status": {
            "sync": {"status": sync, "revision": revision},
            "health": {"status": health, "lastTransitionTime": "2026-11-21T10:00:00Z"},
            **status,
        },
    }


def application_set(environment: str, error: str = "") -> Json:
    conditions = [{"type": "ErrorOccurred", "status": "True" if error else "False", "message": error}]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "ApplicationSet",
        "metadata": {"name": environment, "namespace": "argocd"},
        "status": {"conditions": conditions},
    }


def deployment(model: str, environment: str, version: int, **status: Any) -> Json:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": model,
            "namespace": f"team-{environment}",
            "labels": labels(model, environment, version),
            "annotations": {},
        },
        "spec": {"replicas": 1, "progressDeadlineSeconds": 240},
        "status": {"updatedReplicas": 1, "availableReplicas": 1, **status},
    }


def service(model: str, environment: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": model, "namespace": f"team-{environment}", "labels": labels(model, environment)},
        "spec": {"clusterIP": "10.96.7.7"},
    }
