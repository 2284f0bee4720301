"""Tenants: the namespaces that teams have in the environments, with what keeps them apart.

Teams look, git changes: a team may view its namespaces, and nobody has the right to write into them but Argo CD.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from infra.platform.kubernetes import LABELS, Object, namespace, network_policy, pull_secrets, to_dns

GROUP_PREFIX = "modelwharf:"  # of groups in RBAC, so that a team is no group of the cluster's own by accident
NEEDS_DNS = {"modelwharf.io/needs-dns": "true"}


@dataclass(frozen=True)
class Quota:
    """The most that all pods of one namespace may ask for."""

    cpu: str = "32"
    memory: str = "128Gi"
    gpus: int = 8
    pods: int = 100


@dataclass(frozen=True)
class Tenant:
    """One namespace of an environment, and the teams whose models run in it (one, as the environments come).

    `pull_secret`: the Secret with the registry's credentials; a model's own account names it, too.
    """

    namespace: str
    environment: str
    teams: tuple[str, ...]
    pull_secret: str | None = None


@dataclass(frozen=True)
class Settings:
    """What is the same for all tenants."""

    quota: Quota = Quota()


def group_of(team: str) -> str:
    """Return the name that a team's group has in RBAC."""
    return f"{GROUP_PREFIX}{team}"


def objects(tenants: Iterable[Tenant], settings: Settings) -> list[Object]:
    """Return all objects of all tenants."""
    return [one for tenant in tenants for one in _tenant(tenant, settings)]


def _tenant(tenant: Tenant, settings: Settings) -> list[Object]:
    where = tenant.namespace
    more = {"modelwharf.io/environment": tenant.environment}
    if len(tenant.teams) == 1:
        more["modelwharf.io/team"] = tenant.teams[0]

    def metadata(name: str) -> Object:
        return {"name": name, "namespace": where, "labels": {**LABELS, **more}}

    return [
        namespace(where, more=more),
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": metadata("quota"),
            "spec": {"hard": _hard(settings.quota)},
        },
        {
            "apiVersion": "v1",
            "kind": "LimitRange",
            "metadata": metadata("defaults"),
            "spec": {
                "limits": [
                    {
                        "type": "Container",
                        "defaultRequest": {"cpu": "100m", "memory": "128Mi"},
                        "default": {"memory": "512Mi"},  # without it the quota would refuse what names no limit
                    }
                ]
            },
        },
        network_policy("default-deny", where, ingress=[], egress=[]),
        # What serves needs no names; a pod that does says so by this label.
        network_policy("dns", where, pods=NEEDS_DNS, egress=[to_dns()]),
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": metadata("team-views"),
            # Kubernetes' own role: everything but Secrets, and nothing to write.
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [
                {"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": group_of(team)}
                for team in sorted(tenant.teams)
            ],
        },
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": metadata("default"),
            "automountServiceAccountToken": False,
            **pull_secrets(tenant.pull_secret),
        },
    ]


def _hard(quota: Quota) -> dict[str, str]:
    return {
        "requests.cpu": quota.cpu,
        "requests.memory": quota.memory,
        "limits.memory": quota.memory,
        "requests.nvidia.com/gpu": str(quota.gpus),
        "pods": str(quota.pods),
        "persistentvolumeclaims": "0",  # serving keeps nothing, and offers nothing outside of the cluster
        "services.nodeports": "0",
        "services.loadbalancers": "0",
    }
