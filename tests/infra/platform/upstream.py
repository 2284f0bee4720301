"""Install manifests in the form that upstream gives them, as far as they are changed; the real ones are checked where
a machine has them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
_TIGHT = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}


def _meta(name: str) -> Object:
    return {"name": name, "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "argocd"}}


def _workload(kind: str, name: str, pod: Object, **more: Any) -> Object:
    chosen = {"app.kubernetes.io/name": name}
    template = {"metadata": {"labels": dict(chosen)}, "spec": {"serviceAccountName": name, **pod}}
    spec = {"selector": {"matchLabels": dict(chosen)}, "template": template, **more}
    return {"apiVersion": "apps/v1", "kind": kind, "metadata": _meta(name), "spec": spec}


def _container(name: str, image: str = "quay.io/argoproj/argocd:v3.2.11", **more: Any) -> Object:
    return {"name": name, "image": image, "imagePullPolicy": "Always", "securityContext": dict(_TIGHT), **more}


def _role(kind: str, name: str, rules: list[Object]) -> list[Object]:
    api = "rbac.authorization.k8s.io"
    subject: Object = {"kind": "ServiceAccount", "name": name}
    if kind == "ClusterRole":
        subject["namespace"] = "argocd"
    return [
        {"apiVersion": f"{api}/v1", "kind": kind, "metadata": _meta(name), "rules": rules},
        {
            "apiVersion": f"{api}/v1",
            "kind": f"{kind}Binding",
            "metadata": _meta(name),
            "roleRef": {"apiGroup": api, "kind": kind, "name": name},
            "subjects": [subject],
        },
    ]


def argocd(*, full: bool = False) -> list[Object]:
    """Return Argo CD's core install, or with `full` the one with web server, Dex and notifications."""
    everything = [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}]
    secrets = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]
    probe = {"httpGet": {"path": "/healthz", "port": 8084}, "initialDelaySeconds": 5, "periodSeconds": 10}
    repo = _container(
        "argocd-repo-server",
        args=["/usr/local/bin/argocd-repo-server"],
        env=[{"name": "HELM_CACHE_HOME", "value": "/helm-working-dir"}],
        readinessProbe=dict(probe),
        volumeMounts=[{"name": "tmp", "mountPath": "/tmp"}],
    )
    copy = _container(
        "copyutil",
        command=["/bin/cp", "--update=none", "/usr/local/bin/argocd", "/var/run/argocd/argocd-cmp-server"],
        volumeMounts=[{"name": "var-files", "mountPath": "/var/run/argocd"}],
    )
    redis = _container(
        "redis",
        "public.ecr.aws/docker/library/redis:8.2.2-alpine",
        args=["--save", "", "--appendonly", "no", "--requirepass $(REDIS_PASSWORD)"],
    )
    secret = _container("secret-init", command=["argocd", "admin", "redis-initial-password"])
    workloads = [
        _workload("Deployment", "argocd-applicationset-controller", {"containers": [_container("appset")]}),
        _workload(
            "Deployment",
            "argocd-redis",
            {
                "containers": [redis],
                "initContainers": [secret],
                "securityContext": {"runAsNonRoot": True, "runAsUser": 999},
            },
        ),
        _workload(
            "Deployment",
            "argocd-repo-server",
            {
                "containers": [repo],
                "initContainers": [copy],
                "volumes": [{"name": "tmp", "emptyDir": {}}, {"name": "var-files", "emptyDir": {}}],
            },
        ),
        _workload(
            "StatefulSet",
            "argocd-application-controller",
            {"containers": [_container("argocd-application-controller", readinessProbe=dict(probe))]},
            serviceName="argocd-application-controller",
            replicas=1,
        ),
    ]
    maps = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(name)}
        for name in ("argocd-cm", "argocd-cmd-params-cm", "argocd-rbac-cm")
    ]
    maps[0]["data"] = {"resource.exclusions": "- kinds: [Lease]\n"}
    policy: Object = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _meta("argocd-application-controller-network-policy"),
        "spec": {"podSelector": {}, "ingress": [{"from": [{"namespaceSelector": {}}]}], "policyTypes": ["Ingress"]},
    }
    more: list[Object] = []
    if full:
        for name in ("argocd-server", "argocd-dex-server", "argocd-notifications-controller"):
            more += [_workload("Deployment", name, {"containers": [_container(name)]}), *_role("Role", name, secrets)]
        more += _role("ClusterRole", "argocd-applicationset-controller", secrets)
        any_object = {"apiGroups": ["*"], "resources": ["*"], "verbs": ["delete", "get", "patch"]}
        more += _role("ClusterRole", "argocd-server", [any_object])
        more.append({"apiVersion": "v1", "kind": "Secret", "metadata": _meta("argocd-notifications-secret")})
    return [
        *(definition(f"{kind}.argoproj.io") for kind in ("applications", "applicationsets", "appprojects")),
        *_role("Role", "argocd-redis", secrets),
        *_role("ClusterRole", "argocd-application-controller", everything),
        *maps,
        *workloads,
        *more,
        policy,
    ]


def rollouts() -> list[Object]:
    """Return Argo Rollouts' install."""
    container = _container(
        "argo-rollouts",
        "quay.io/argoproj/argo-rollouts:latest",
        readinessProbe={"httpGet": {"path": "/metrics", "port": 8090}, "initialDelaySeconds": 10},
        resources={"limits": {"ephemeral-storage": "1Gi"}},
    )
    return [
        definition("rollouts.argoproj.io"),
        *_role(
            "ClusterRole", "argo-rollouts", [{"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["get"]}]
        ),
        _workload("Deployment", "argo-rollouts", {"containers": [container]}, replicas=1),
    ]


def definition(name: str) -> Object:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": name},
        "spec": {
            "group": name.partition(".")[2],
            "names": {"plural": name.partition(".")[0], "kind": name.partition(".")[0].title()},
            "versions": [{"name": "v1alpha1"}],
        },
    }


def real(module: str, path: str) -> list[Object] | None:
    """Return a manifest of a Go module's folder, None on a machine that has not downloaded it."""
    cache = Path(os.environ.get("GOMODCACHE") or Path.home() / "go" / "pkg" / "mod")
    file = cache / module / path
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return [one for one in yaml.load_all(file.read_bytes(), Loader=loader) if one] if file.is_file() else None
