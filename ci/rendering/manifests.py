"""The Kubernetes objects of one release, as plain data in the order that people read them.

Everything is restricted to the Pod Security Standard "restricted"
(https://kubernetes.io/docs/concepts/security/pod-security-standards/) plus a read-only root file system.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ci.environments import Environment
from ci.release import Release
from ci.rendering.manifest_text import Json
from models.spec import ModelSpec

Manifest = Mapping[str, Json]

PORT = 3000
PREDICTION_LOG = "/var/log/wharf"
_SOURCE = "/home/bentoml/bento/src"  # where BentoML's images keep the bento
# The user that BentoML's images are made for; a number, so that the kubelet can tell that it is not root.
USER = 1034
# Seconds that a pod which is to end goes on serving: until then every kube-proxy and ingress has forgotten it.
PRE_STOP_S = 10
# Seconds beyond the longest request and the wait that a pod may take to end.
_GRACE_S = 10
# A cold start is mostly imports: 8 to 18 s were measured on two busy cores.
_STARTUP_S = 180


@dataclass(frozen=True)
class Subject:
    """What the objects are made from."""

    release: Release
    spec: ModelSpec
    environment: Environment
    namespace: str

    @property
    def selector(self) -> dict[str, str]:
        """Labels that never change: a Deployment's selector is immutable."""
        return {"app.kubernetes.io/name": self.spec.name, "app.kubernetes.io/instance": self.instance}

    @property
    def instance(self) -> str:
        return f"{self.spec.name}-{self.environment.name}"

    @property
    def labels(self) -> dict[str, str]:
        """The recommended labels (https://kubernetes.io/docs/concepts/overview/working-with-objects/common-labels/).

        The version is not among them, so that a promotion changes one file only: it labels Deployment and pods.
        """
        return {
            **self.selector,
            "app.kubernetes.io/component": "model-server",
            "app.kubernetes.io/part-of": "modelwharf",
            "app.kubernetes.io/managed-by": "modelwharf",
            "modelwharf.io/environment": self.environment.name,
            "modelwharf.io/team": self.spec.team,
        }

    def metadata(self, **more: Json) -> Manifest:
        return {"name": self.spec.name, "namespace": self.namespace, "labels": self.labels, **more}


def all_of(release: Release, spec: ModelSpec, environment: Environment) -> dict[str, Manifest]:
    """Return the objects of a release by the name of their file.

    Raises Mistake when the environment's namespace pattern makes no DNS label for this model.
    """
    subject = Subject(release, spec, environment, environment.namespace_of(spec.team, spec.name))
    objects = {
        "deployment.yaml": deployment(subject),
        "networkpolicy.yaml": network_policy(subject),
        "poddisruptionbudget.yaml": pod_disruption_budget(subject),
        "service.yaml": service(subject),
        "serviceaccount.yaml": service_account(subject),
    }
    if _scales(environment):
        objects["horizontalpodautoscaler.yaml"] = horizontal_pod_autoscaler(subject)
    return objects


def _scales(environment: Environment) -> bool:
    return environment.replicas.max > environment.replicas.min


def deployment(subject: Subject) -> Manifest:
    release, environment = subject.release, subject.environment
    version = {"app.kubernetes.io/version": str(release.version)}
    # Who scales owns the number: with an autoscaler the Deployment leaves `replicas` out, or every sync of Argo CD
    # would set back what the autoscaler has set, and the two would fight for ever.
    replicas: dict[str, Json] = {} if _scales(environment) else {"replicas": environment.replicas.min}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "name": subject.spec.name,
            "namespace": subject.namespace,
            "labels": {**subject.labels, **version},
            "annotations": _origin(release),
        },
        "spec": {
            **replicas,
            "revisionHistoryLimit": 3,
            "progressDeadlineSeconds": _STARTUP_S + 60,
            "minReadySeconds": 5,
            # The new version must be Ready before an old pod goes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "selector": {"matchLabels": subject.selector},
            "template": {"metadata": {"labels": {**subject.labels, **version}}, "spec": _pod(subject)},
        },
    }


def _origin(release: Release) -> dict[str, str]:
    """Annotations that lead back from the cluster to what was trained, on which data, and why it was let through."""
    facts = {
        "commit": release.commit,
        "run": release.run,
        "version": str(release.version),
        "data": release.data,
        "evidence": release.evidence,
        "artifact": release.artifact,
        "bento": release.bento,
    }
    return {f"modelwharf.io/{name}": value for name, value in facts.items()}


def _pod(subject: Subject) -> Manifest:
    environment, spec = subject.environment, subject.spec
    optional: dict[str, Json] = {}
    if environment.node_selector:
        optional["nodeSelector"] = dict(sorted(environment.node_selector.items()))
    tolerations: list[Json] = [toleration.model_dump(exclude_none=True) for toleration in environment.tolerations]
    if spec.resources.gpu:  # nodes with GPUs are kept free of everything else by this taint
        tolerations.append({"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"})
    if tolerations:
        optional["tolerations"] = tolerations
    return {
        "serviceAccountName": spec.name,
        "automountServiceAccountToken": False,  # a model never talks to the Kubernetes API
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": PRE_STOP_S + math.ceil(spec.serving.timeout_s) + _GRACE_S,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **optional,
        "topologySpreadConstraints": [
            _spread(subject, "kubernetes.io/hostname"),
            _spread(subject, "topology.kubernetes.io/zone"),
        ],
        "containers": [_container(subject)],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": "256Mi"}},
            {"name": "predictions", "emptyDir": {"sizeLimit": environment.prediction_log}},
        ],
    }


def _spread(subject: Subject, topology: str) -> Manifest:
    return {
        "maxSkew": 1,
        "topologyKey": topology,
        "whenUnsatisfiable": "ScheduleAnyway",  # better two replicas on one node than one replica
        "labelSelector": {"matchLabels": subject.selector},
        "matchLabelKeys": ["pod-template-hash"],  # the pods of the old version do not count in a rollout
    }


def _container(subject: Subject) -> Manifest:
    return {
        "name": "model",
        "image": subject.release.image,
        "imagePullPolicy": "IfNotPresent",  # a digest never means another image
        # The bento's own launcher: one process that exits with a reason when the artifact is not what it should be,
        # where `bentoml serve`, the image's default, would start its worker again and again.
        "command": ["python", f"{_SOURCE}/bentos/serve.py", "--host", "0.0.0.0", "--port", str(PORT)],  # noqa: S104
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "env": [{"name": name, "value": value} for name, value in _variables(subject).items()],
        "resources": _resources(subject),
        "startupProbe": _probe("/readyz", periodSeconds=3, timeoutSeconds=3, failureThreshold=_STARTUP_S // 3),
        "readinessProbe": _probe("/readyz", periodSeconds=5, timeoutSeconds=3, failureThreshold=2),
        "livenessProbe": _probe("/livez", periodSeconds=10, timeoutSeconds=5, failureThreshold=6),
        # The kubelet does the waiting (beta and on since Kubernetes 1.30): `exec: [sleep, …]` would need that
        # program in the image and a process in the container.
        "lifecycle": {"preStop": {"sleep": {"seconds": PRE_STOP_S}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a mount of the pod's own
            {"name": "predictions", "mountPath": PREDICTION_LOG},
        ],
    }


def _variables(subject: Subject) -> dict[str, str]:
    """Everything that the serving process is told."""
    release = subject.release
    return {
        "WHARF_MODEL": release.model,
        "WHARF_VERSION": str(release.version),
        "WHARF_ENVIRONMENT": release.environment,
        "WHARF_ARTIFACT_SHA256": release.artifact.removeprefix("sha256:"),
        "WHARF_PREDICTION_LOG": PREDICTION_LOG,
        "WHARF_BENTO": release.bento,
    }


def _resources(subject: Subject) -> Manifest:
    """Requests from model.yaml. Memory cannot burst (the limit is the request): the kernel would kill at random."""
    needs, environment = subject.spec.resources, subject.environment
    disk = _mebibytes("256Mi") + _mebibytes(environment.prediction_log) + 64  # both volumes and the container's output
    both: dict[str, Json] = {"ephemeral-storage": f"{disk}Mi"}
    if needs.gpu:
        both["nvidia.com/gpu"] = str(needs.gpu)
    return {
        "requests": {"cpu": needs.cpu, "memory": needs.memory, **both},
        "limits": {"cpu": _times(needs.cpu, environment.cpu_burst), "memory": needs.memory, **both},
    }


def _times(cpu: str, factor: float) -> str:
    """Return a cpu quantity (`250m`, `2`) times `factor`, in thousandths, rounded up."""
    thousandths = int(cpu[:-1]) if cpu.endswith("m") else int(cpu) * 1000
    return f"{math.ceil(thousandths * factor)}m"


def _mebibytes(quantity: str) -> int:
    number, unit = re.findall(r"([0-9]+)(Mi|Gi)", quantity)[0]
    return int(number) * (1024 if unit == "Gi" else 1)


def _probe(path: str, **timing: int) -> Manifest:
    return {"httpGet": {"path": path, "port": "http"}, **timing}


def service(subject: Subject) -> Manifest:
    """A Service whose labels and named port are what one ServiceMonitor for all models selects."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": subject.spec.name,
            "namespace": subject.namespace,
            "labels": {**subject.labels, "modelwharf.io/metrics": "http"},  # the name of the port that has /metrics
        },
        "spec": {
            "type": "ClusterIP",
            "selector": subject.selector,
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    }


def service_account(subject: Subject) -> Manifest:
    """An identity of the model's own, so that no other workload's rights are ever its rights."""
    secret = subject.environment.pull_secret
    return {
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": subject.metadata(),
        "automountServiceAccountToken": False,
        **({"imagePullSecrets": [{"name": secret}]} if secret else {}),
    }


def pod_disruption_budget(subject: Subject) -> Manifest:
    allowed = subject.environment.pod_disruption
    bound = (
        {"minAvailable": allowed.min_available}
        if allowed.min_available is not None
        else {"maxUnavailable": allowed.max_unavailable}
    )
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": subject.metadata(),
        "spec": {
            **bound,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",  # a pod that never became Ready must not block a drain
            "selector": {"matchLabels": subject.selector},
        },
    }


def horizontal_pod_autoscaler(subject: Subject) -> Manifest:
    environment = subject.environment
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": subject.metadata(),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": subject.spec.name},
            "minReplicas": environment.replicas.min,
            "maxReplicas": environment.replicas.max,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {
                        "name": "cpu",
                        "target": {"type": "Utilization", "averageUtilization": environment.target_cpu_percent},
                    },
                }
            ],
        },
    }


def network_policy(subject: Subject) -> Manifest:
    """Deny everything, then let in http from whom the environment names; nothing goes out, not even DNS.

    A serving process calls nobody: a model file that was tampered with has nowhere to send what it sees.
    Probes come from the node itself, which policies do not stop.
    """
    environment = subject.environment
    namespaces = sorted({*environment.ingress_namespaces, environment.monitoring_namespace})
    allowed: list[Json] = [
        {"podSelector": {}},  # pods of the same namespace
        {
            "namespaceSelector": {
                "matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "In", "values": list(namespaces)}
                ]
            }
        },
    ]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": subject.metadata(),
        "spec": {
            "podSelector": {"matchLabels": subject.selector},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"from": allowed, "ports": [{"port": "http", "protocol": "TCP"}]}],
            "egress": [],
        },
    }
