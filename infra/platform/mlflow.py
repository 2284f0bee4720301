"""MLflow: the tracking server and registry, in the namespace of the platform's own services and jobs.

Its database is SQLite on a volume, or a server by the URI in a Secret; artifacts are on the same volume, or in a store
that speaks S3. Clients send and fetch artifacts through the server, so that only it needs rights on the store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra.platform.kubernetes import (
    LABELS,
    Object,
    Resources,
    container_security,
    from_namespaces,
    labels,
    namespace,
    network_policy,
    pod_security,
    pull_secrets,
    tcp,
    to_dns,
)

NAMESPACE = "modelwharf"
NAME = "mlflow"
PORT = 5000
USER = 10001
_DATA = "/var/lib/mlflow"
_LABELS = labels(NAME, "tracking-server")
_SELECTOR = {"app.kubernetes.io/name": NAME}
_RESOURCES = Resources("100m", "512Mi", "1536Mi")


@dataclass(frozen=True)
class SecretKey:
    """One entry of a Secret in the namespace of MLflow; its value never passes through here."""

    name: str
    key: str


@dataclass(frozen=True)
class ArtifactStore:
    """A store that speaks S3: `s3://bucket/path`, its address unless it is AWS's, and a Secret of AWS_* variables.

    Without a Secret the pod's own identity (IRSA, Pod Identity) is used.
    """

    uri: str
    endpoint: str | None = None
    credentials: str | None = None


@dataclass(frozen=True)
class Volume:
    """Where SQLite and artifacts are.

    `node_path`: a folder that exists on the cluster's only node; else `storage_class`, None for the default one.
    """

    size: str = "20Gi"
    storage_class: str | None = None
    node_path: str | None = None


@dataclass(frozen=True)
class Settings:
    """How MLflow is installed.

    `addresses`: what clients may call it beside its names in the cluster (host names and addresses without a port,
    such as its Service's). `from_addresses`: networks outside of the pods that may reach it. `from_namespaces`: whose
    pods may, beside its own namespace's.
    """

    image: str
    volume: Volume = Volume()
    database: SecretKey | None = None
    artifacts: ArtifactStore | None = None
    addresses: Sequence[str] = ()
    from_addresses: Sequence[str] = ()
    from_namespaces: Sequence[str] = ()
    pull_secret: str | None = None
    domain: str = "cluster.local"


def objects(settings: Settings) -> list[Object]:
    """Return all objects of MLflow and of its namespace."""
    needs_volume = settings.database is None or settings.artifacts is None
    return [
        namespace(NAMESPACE),
        *([*_volume(settings.volume)] if needs_volume else []),
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": _LABELS},
            "automountServiceAccountToken": False,
            **pull_secrets(settings.pull_secret),
        },
        # Jobs run as the namespace's own account.
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {"name": "default", "namespace": NAMESPACE, "labels": LABELS},
            "automountServiceAccountToken": False,
            **pull_secrets(settings.pull_secret),
        },
        service(),
        _deployment(settings, needs_volume),
        *_network_policies(settings),
    ]


def service() -> Object:
    """Return the Service: by itself, because its address is among those that the server has to be told."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": _LABELS},
        "spec": {
            "selector": _SELECTOR,
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": "http"}],
        },
    }


def allowed_hosts(settings: Settings) -> list[str]:
    """Return the values of the Host header that the server answers to; any other is refused (DNS rebinding).

    A port-forward is called by `localhost`, at any port.
    """
    inside = [NAME, f"{NAME}.{NAMESPACE}", f"{NAME}.{NAMESPACE}.svc", f"{NAME}.{NAMESPACE}.svc.{settings.domain}"]
    return [*(f"{name}:{PORT}" for name in [*inside, *settings.addresses]), "localhost:*", "127.0.0.1:*"]


def _volume(volume: Volume) -> list[Object]:
    size = {"storage": volume.size}
    claim: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": size}}
    found: list[Object] = []
    if volume.node_path is not None:
        name = f"{NAMESPACE}-{NAME}"
        claim |= {"storageClassName": "", "volumeName": name}
        found.append(
            {
                "apiVersion": "v1",
                "kind": "PersistentVolume",
                "metadata": {"name": name, "labels": _LABELS},
                "spec": {
                    "capacity": size,
                    "accessModes": ["ReadWriteOnce"],
                    "persistentVolumeReclaimPolicy": "Retain",
                    "storageClassName": "",
                    "claimRef": {"namespace": NAMESPACE, "name": NAME},
                    # Not hostPath: of a local volume the kubelet makes the pod's group the owner.
                    "local": {"path": volume.node_path},
                    "nodeAffinity": {
                        "required": {
                            "nodeSelectorTerms": [
                                {
                                    "matchExpressions": [
                                        {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]}
                                    ]
                                }
                            ]
                        }
                    },
                },
            }
        )
    elif volume.storage_class is not None:
        claim["storageClassName"] = volume.storage_class
    found.append(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": _LABELS},
            "spec": claim,
        }
    )
    return found


def _command(settings: Settings) -> list[str]:
    command = ["mlflow", "server", "--host", "0.0.0.0", "--port", str(PORT), "--workers", "1"]  # noqa: S104 (of the pod)
    if settings.database is None:
        command += ["--backend-store-uri", f"sqlite:///{_DATA}/mlflow.db"]
    destination = settings.artifacts.uri if settings.artifacts else f"{_DATA}/artifacts"
    return [*command, "--artifacts-destination", destination, "--allowed-hosts", ",".join(allowed_hosts(settings))]


def _environment(settings: Settings) -> list[Object]:
    # Job consumers are 11 processes that nothing here uses, and a way in: jobs run what a client sends.
    found = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    found |= {"GIT_PYTHON_REFRESH": "quiet", "HOME": "/tmp", "PYTHONUNBUFFERED": "1"}  # noqa: S108 (the pod's own)
    if settings.artifacts and settings.artifacts.endpoint:
        found["MLFLOW_S3_ENDPOINT_URL"] = settings.artifacts.endpoint
    listed: list[Object] = [{"name": name, "value": value} for name, value in found.items()]
    if settings.database is not None:
        source = {"secretKeyRef": {"name": settings.database.name, "key": settings.database.key}}
        listed.append({"name": "MLFLOW_BACKEND_STORE_URI", "valueFrom": source})
    return listed


def _deployment(settings: Settings, needs_volume: bool) -> Object:
    health = {"path": "/health", "port": "http"}  # the one path that answers whatever the Host header says
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 (the pod's own)
    volumes: list[Object] = [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}]
    if needs_volume:
        mounts.append({"name": "data", "mountPath": _DATA})
        volumes.append({"name": "data", "persistentVolumeClaim": {"claimName": NAME}})
    container: Object = {
        "name": NAME,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": _command(settings),
        "workingDir": "/tmp",  # noqa: S108 (the pod's own)
        "env": _environment(settings),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        # The first start makes the tables, which took 11 s on two busy cores, after imports of 16 s.
        "startupProbe": {"httpGet": health, "periodSeconds": 2, "timeoutSeconds": 2, "failureThreshold": 90},
        "readinessProbe": {"httpGet": health, "periodSeconds": 5, "timeoutSeconds": 5},
        "livenessProbe": {"httpGet": health, "periodSeconds": 20, "timeoutSeconds": 10, "failureThreshold": 6},
        "resources": _RESOURCES.as_object(),
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    if settings.artifacts and settings.artifacts.credentials:
        container["envFrom"] = [{"secretRef": {"name": settings.artifacts.credentials}}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": NAME, "namespace": NAMESPACE, "labels": _LABELS},
        "spec": {
            "replicas": 1,
            "revisionHistoryLimit": 3,
            # The old server must have let go of SQLite and of the volume before the new one starts.
            "strategy": {"type": "Recreate"} if needs_volume else {"type": "RollingUpdate"},
            "selector": {"matchLabels": _SELECTOR},
            "template": {
                "metadata": {"labels": _LABELS},
                "spec": {
                    "serviceAccountName": NAME,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "terminationGracePeriodSeconds": 15,
                    "securityContext": pod_security(USER, owns_volumes=True),
                    "containers": [container],
                    "volumes": volumes,
                },
            },
        },
    }


def _network_policies(settings: Settings) -> list[Object]:
    peers: list[Object] = [{"podSelector": {}}]
    if settings.from_namespaces:
        peers.append(from_namespaces(*settings.from_namespaces))
    peers += [{"ipBlock": {"cidr": cidr}} for cidr in settings.from_addresses]
    # A database or store is outside of the cluster's pods, by an address that may change: the ports are what is known.
    egress: list[Object] = []
    if settings.database is not None:
        egress.append({"ports": tcp(5432)})
    if settings.artifacts is not None:
        egress.append({"ports": tcp(443, 9000)})
    return [
        network_policy("default-deny", NAMESPACE, ingress=[]),
        network_policy(
            NAME,
            NAMESPACE,
            pods=_SELECTOR,
            ingress=[{"from": peers, "ports": tcp("http")}],
            egress=[to_dns(), *egress] if egress else [],
        ),
    ]
