"""CoreDNS, for a cluster that has no DNS of its own: the single node. Other clusters come with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.platform.kubernetes import (
    DNS_NAMESPACE,
    MONITORING_NAMESPACE,
    Object,
    Resources,
    container_security,
    digest,
    from_namespaces,
    labels,
    network_policy,
    pod_security,
    tcp,
)

NAME = "coredns"
USER = 65532
_PORT = 1053  # a port above 1024, so that no capability is needed; the Service offers it as 53
_HEALTH, _READY, _METRICS = 8080, 8181, 9153
_RESOURCES = Resources("20m", "48Mi", "170Mi")
# What clusters call their DNS Service and its pods, whichever program answers.
_SELECTOR = {"k8s-app": "kube-dns"}
_LABELS = {**labels(NAME, "dns"), **_SELECTOR}


@dataclass(frozen=True)
class Settings:
    """`address`: the Service's address, which the kubelet writes into pods; `forward`: servers for all other names.

    Without `forward` other names do not exist, which is the truth on a machine without a network. `command`: how the
    image starts CoreDNS, None where its entry point does.
    """

    image: str
    address: str
    domain: str = "cluster.local"
    forward: Sequence[str] = ()
    command: Sequence[str] | None = None
    monitoring_namespace: str = MONITORING_NAMESPACE


def objects(settings: Settings) -> list[Object]:
    """Return all objects of CoreDNS, in the namespace `kube-system`, which every cluster has."""
    corefile = _corefile(settings)
    return [
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": DNS_NAMESPACE, "labels": _LABELS},
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": f"modelwharf:{NAME}", "labels": _LABELS},
            "rules": [
                {"apiGroups": [""], "resources": ["services", "namespaces"], "verbs": ["list", "watch"]},
                {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
            ],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": f"modelwharf:{NAME}", "labels": _LABELS},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": f"modelwharf:{NAME}"},
            "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": DNS_NAMESPACE}],
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": NAME, "namespace": DNS_NAMESPACE, "labels": _LABELS},
            "data": {"Corefile": corefile},
        },
        _service(settings),
        _deployment(settings, corefile),
        network_policy(
            NAME,
            DNS_NAMESPACE,
            pods=_SELECTOR,
            ingress=[
                {"ports": [{"port": _PORT, "protocol": "UDP"}, {"port": _PORT, "protocol": "TCP"}]},
                {"from": [from_namespaces(settings.monitoring_namespace)], "ports": tcp(_METRICS)},
            ],
        ),
    ]


def _corefile(settings: Settings) -> str:
    lines = [
        "errors",
        f"health :{_HEALTH} {{\n        lameduck 5s\n    }}",
        f"ready :{_READY}",
        f"kubernetes {settings.domain} in-addr.arpa ip6.arpa {{\n"
        "        fallthrough in-addr.arpa ip6.arpa\n        ttl 15\n    }",
        f"prometheus :{_METRICS}",
        *([f"forward . {' '.join(settings.forward)}"] if settings.forward else []),
        "cache 30",
        "loop",
        "loadbalance",
    ]
    return f".:{_PORT} {{\n" + "".join(f"    {line}\n" for line in lines) + "}\n"


def _service(settings: Settings) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kube-dns", "namespace": DNS_NAMESPACE, "labels": _LABELS},
        "spec": {
            "clusterIP": settings.address,
            "selector": _SELECTOR,
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": "dns-tcp"},
            ],
        },
    }


def _deployment(settings: Settings, corefile: str) -> Object:
    container: Object = {
        "name": NAME,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "args": ["-conf", "/etc/coredns/Corefile"],
        "ports": [
            {"name": "dns", "containerPort": _PORT, "protocol": "UDP"},
            {"name": "dns-tcp", "containerPort": _PORT, "protocol": "TCP"},
            {"name": "metrics", "containerPort": _METRICS, "protocol": "TCP"},
        ],
        "livenessProbe": {
            "httpGet": {"path": "/health", "port": _HEALTH},
            "initialDelaySeconds": 20,
            "periodSeconds": 10,
            "timeoutSeconds": 5,
        },
        "readinessProbe": {"httpGet": {"path": "/ready", "port": _READY}, "periodSeconds": 3},
        "resources": _RESOURCES.as_object(),
        "securityContext": container_security(),
        "volumeMounts": [{"name": "configuration", "mountPath": "/etc/coredns", "readOnly": True}],
    }
    if settings.command is not None:
        container["command"] = list(settings.command)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": DNS_NAMESPACE, "labels": _LABELS},
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 3,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": _SELECTOR},
            "template": {
                "metadata": {"labels": _LABELS, "annotations": {"modelwharf.io/configuration": digest(corefile)}},
                "spec": {
                    "serviceAccountName": NAME,
                    "priorityClassName": "system-cluster-critical",
                    "dnsPolicy": "Default",  # it cannot ask itself
                    "enableServiceLinks": False,
                    "securityContext": pod_security(USER),
                    "containers": [container],
                    "volumes": [{"name": "configuration", "configMap": {"name": NAME}}],
                },
            },
        },
    }
