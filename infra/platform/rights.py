"""What Argo CD's parts may do in namespaces other than their own."""

from __future__ import annotations

from collections.abc import Sequence

from infra.platform.kubernetes import Object

# (API group, resource) of what releases consist of: all that the application controller may write in other namespaces.
RELEASED = (
    ("", "serviceaccounts"),
    ("", "services"),
    ("apps", "deployments"),
    ("autoscaling", "horizontalpodautoscalers"),
    ("networking.k8s.io", "networkpolicies"),
    ("policy", "poddisruptionbudgets"),
)

KINDS = {
    "serviceaccounts": "ServiceAccount",
    "services": "Service",
    "deployments": "Deployment",
    "horizontalpodautoscalers": "HorizontalPodAutoscaler",
    "networkpolicies": "NetworkPolicy",
    "poddisruptionbudgets": "PodDisruptionBudget",
}

# What follows from them, and is shown beside them.
_SHOWN = (
    ("", "endpoints"),
    ("", "pods"),
    ("", "pods/log"),
    ("apps", "replicasets"),
    ("discovery.k8s.io", "endpointslices"),
)


def controller(released: Sequence[tuple[str, str]]) -> list[Object]:
    """Return the rules of the application controller: it watches the cluster, and writes what releases consist of.

    Its own kinds, in its own namespace, are in its Role.
    """
    return [
        {"apiGroups": ["*"], "resources": ["*"], "verbs": ["get", "list", "watch"]},
        {"nonResourceURLs": ["*"], "verbs": ["get"]},
        *_rules(released, ["create", "update", "patch", "delete"]),
    ]


def server(released: Sequence[tuple[str, str]]) -> list[Object]:
    """Return the rules of the web server: it shows releases and what Kubernetes makes of them.

    It changes nothing, for that is done in git; without a right to Secrets, no fault of its own gives any away.
    """
    return [
        *_rules([*released, *_SHOWN], ["get"]),
        {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
        *_rules([("argoproj.io", "applications"), ("argoproj.io", "applicationsets")], ["get", "list", "watch"]),
    ]


def _rules(wanted: Sequence[tuple[str, str]], verbs: list[str]) -> list[Object]:
    groups: dict[str, list[str]] = {}
    for group, resource in wanted:
        groups.setdefault(group, []).append(resource)
    return [
        {"apiGroups": [group], "resources": sorted(names), "verbs": verbs} for group, names in sorted(groups.items())
    ]
