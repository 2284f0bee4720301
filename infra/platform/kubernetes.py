"""What all parts of the platform share: labels, pod security, network policies, resources.

Objects are plain data in the words of the Kubernetes API. Nothing here talks to a cluster: `wharf up --target cluster`
applies them, and so do the Pulumi components.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

Object: TypeAlias = dict[str, Any]

# Part of every object's labels: what Modelwharf put into a cluster is found, and removed, by them.
PART_OF = "modelwharf-platform"
LABELS = {"app.kubernetes.io/part-of": PART_OF, "app.kubernetes.io/managed-by": "modelwharf"}

MONITORING_NAMESPACE = "monitoring"
DNS_NAMESPACE = "kube-system"

# Kinds without a namespace, of all that the platform is made of.
CLUSTER_SCOPED = frozenset(
    {"Namespace", "CustomResourceDefinition", "ClusterRole", "ClusterRoleBinding", "PersistentVolume", "PriorityClass"}
)


@dataclass(frozen=True)
class Resources:
    """What a container is promised and what it may use at most; processor time beyond the promise is never withheld.

    No limit of processor time: it slows a program down while processors are idle. Memory has one, because what runs
    out of memory on a node takes others with it.
    """

    cpu: str
    memory: str
    memory_limit: str

    def as_object(self) -> Object:
        return {"requests": {"cpu": self.cpu, "memory": self.memory}, "limits": {"memory": self.memory_limit}}


def labels(name: str, component: str | None = None) -> dict[str, str]:
    """Return the labels of an object of the program `name`."""
    more = {"app.kubernetes.io/component": component} if component else {}
    return {"app.kubernetes.io/name": name, **more, **LABELS}


def namespace(name: str, *, level: str = "restricted", more: Mapping[str, str] | None = None) -> Object:
    """Return a namespace that admits only pods of the Pod Security Standard `level`."""
    checks = {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "audit", "warn")}
    return {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": name, "labels": {**LABELS, **checks, **(more or {})}},
    }


def pod_security(user: int, *, group: int | None = None, owns_volumes: bool = False) -> Object:
    """Return a pod's securityContext for a number of a user that is not root.

    With `owns_volumes` the kubelet gives the volumes to the group, where their kind allows it.
    """
    context: Object = {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user if group is None else group,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    if owns_volumes:
        context |= {"fsGroup": context["runAsGroup"], "fsGroupChangePolicy": "OnRootMismatch"}
    return context


def container_security() -> Object:
    """Return a container's securityContext: the Pod Security Standard "restricted", and nothing written into it."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def network_policy(
    name: str,
    namespace: str,
    *,
    pods: Mapping[str, str] | None = None,
    ingress: Sequence[Object] | None = None,
    egress: Sequence[Object] | None = None,
) -> Object:
    """Return a policy for the pods with these labels (None: all pods of the namespace).

    A direction that is None is left as it is; an empty list lets nothing through. What another policy lets through
    is added: policies never take anything away.
    """
    spec: Object = {"podSelector": {"matchLabels": dict(pods)} if pods else {}}
    spec["policyTypes"] = [kind for kind, rules in (("Ingress", ingress), ("Egress", egress)) if rules is not None]
    if ingress is not None:
        spec["ingress"] = list(ingress)
    if egress is not None:
        spec["egress"] = list(egress)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "labels": LABELS},
        "spec": spec,
    }


def from_namespaces(*names: str) -> Object:
    """Return the peer "any pod of these namespaces"."""
    chosen = {"key": "kubernetes.io/metadata.name", "operator": "In", "values": sorted(names)}
    return {"namespaceSelector": {"matchExpressions": [chosen]}}


def tcp(*ports: int | str) -> list[Object]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def to_dns() -> Object:
    """Return the egress rule that lets pods ask the cluster's DNS.

    By port and namespace, not by the labels of one DNS server: CoreDNS listens on 53 in most clusters, and on a port
    above 1024 where it runs without the right to open lower ones.
    """
    ports = [{"port": port, "protocol": protocol} for port in (53, 1053) for protocol in ("UDP", "TCP")]
    return {"to": [from_namespaces(DNS_NAMESPACE)], "ports": ports}


def digest(value: object) -> str:
    """Return a short digest of plain data: as an annotation of a pod template it starts new pods when it changes."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def placed(objects: Iterable[Object], namespace: str) -> list[Object]:
    """Return copies of objects of an install manifest with `namespace` written into each that has one.

    Upstream leaves it out for `kubectl apply -n`; bindings name it in their subjects, too.
    """
    found: list[Object] = []
    for one in objects:
        copy: Object = json.loads(json.dumps(one))
        if copy["kind"] not in CLUSTER_SCOPED:
            copy["metadata"]["namespace"] = namespace
        for subject in copy.get("subjects") or []:
            if subject.get("kind") == "ServiceAccount":
                subject["namespace"] = namespace
        found.append(copy)
    return found


def pod_template(workload: Object) -> Object:
    """Return the pod template of a Deployment or StatefulSet, to be read or changed."""
    return workload["spec"]["template"]


def containers(pod: Object) -> list[Object]:
    """Return all containers of a pod's spec, the ones that run first included."""
    return [*(pod.get("initContainers") or []), *pod["containers"]]


def pull_secrets(name: str | None) -> Object:
    """Return the field of a ServiceAccount whose pods pull with the Secret `name`; empty for None."""
    return {"imagePullSecrets": [{"name": name}]} if name else {}


def pull_secret(name: str, where: str, host: str, basic: str) -> Object:
    """Return the Secret of type dockerconfigjson with the login to one registry.

    `basic` is base64 of `user:password`, as `docker login` keeps it.
    """
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": where, "labels": LABELS},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": json.dumps({"auths": {host: {"auth": basic}}})},
    }
