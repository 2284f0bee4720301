"""Argo CD: upstream's install manifest, reduced to what is used here and hardened.

What comes in is upstream's own list of objects at a pinned version; what comes out is what is applied. Changed are:

- Nothing but plain YAML is rendered: kustomize, Helm, Jsonnet, plugins and submodules are off, so that their holes are
  not ours. With plugins goes the init container that copies the program for them.
- Parts that nobody uses are left out (Dex, notifications), as are the rights of ApplicationSets in other namespaces.
- The application controller may read everything, but write only the kinds that releases consist of; upstream's is an
  administrator of the whole cluster. The web server shows what releases are made of, and changes nothing in other
  namespaces; upstream's may delete and patch everything in the cluster, and read every Secret.
- Every pod keeps the Pod Security Standard "restricted", and the namespace admits no other. An origin on the node's
  disk comes in as a volume of the cluster's administrator, because a pod of that standard may not name a host path.
- Nothing reaches the pods that is not named: Redis and the repo server are for Argo CD's own pods, figures are for the
  monitoring namespace. A repo server with its origin on disk reaches Redis and DNS alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from infra.platform import rights
from infra.platform.kubernetes import (
    LABELS,
    MONITORING_NAMESPACE,
    Object,
    Resources,
    container_security,
    containers,
    digest,
    from_namespaces,
    namespace,
    network_policy,
    placed,
    pod_security,
    pod_template,
    tcp,
    to_dns,
)

NAMESPACE = "argocd"
USER = 999  # of upstream's images of Argo CD and of Redis; a number, so that the kubelet can tell that it is not root
CONTROLLER, REPO_SERVER = "argocd-application-controller", "argocd-repo-server"
APPLICATION_SETS, REDIS, SERVER = "argocd-applicationset-controller", "argocd-redis", "argocd-server"
WORKLOADS = (CONTROLLER, REPO_SERVER, APPLICATION_SETS, REDIS, SERVER)
_UNUSED = ("argocd-dex-server", "argocd-notifications")
_GIT_FOLDER = "/app/config/git"
_WORKLOAD_KINDS = ("Deployment", "StatefulSet")

# Measured needs are far below at rest; the limits leave room for a thousand applications.
_RESOURCES = {
    CONTROLLER: Resources("100m", "256Mi", "2Gi"),
    REPO_SERVER: Resources("50m", "128Mi", "1Gi"),
    APPLICATION_SETS: Resources("20m", "64Mi", "512Mi"),
    REDIS: Resources("20m", "32Mi", "512Mi"),
    SERVER: Resources("20m", "64Mi", "512Mi"),
}


@dataclass(frozen=True)
class Origin:
    """A bare repository on the disk of the nodes: where it is there, and where `file://` looks for it in the pod.

    `identity` is whatever tells this folder from one that takes its place later: a pod goes on seeing the folder that
    it was started with, also when that was removed, so another identity starts a new one.
    """

    host_path: str
    mount_path: str
    identity: str = ""


@dataclass(frozen=True)
class Tuning:
    """How much Argo CD does at a time. The defaults suit one machine of two cores as well as a thousand applications.

    A push is announced by a refresh, so that polling is only what finds commits that nobody announced.

    `client_qps`, `client_burst`: requests a second that one client of Argo CD's may send to the API server; None is
    upstream's choice (50, 100), at which a thousand new applications wait for the limit and not for the machine.
    `events`: write a Kubernetes event for each thing that happens to an application; the last operation, conditions and
    history are in its status all the same.
    `watch_all`: watch every kind in the cluster, not only those that are deployed (see `_watched`).
    """

    reconciliation_s: int = 180
    jitter_s: int = 60
    status_processors: int = 20
    operation_processors: int = 10
    kubectl_parallelism: int = 20
    repo_parallelism: int = 10
    application_sets: int = 10  # that are worked on at a time
    client_qps: int | None = None
    client_burst: int | None = None
    events: bool = True
    watch_all: bool = False


@dataclass(frozen=True)
class Settings:
    """How Argo CD is installed.

    `images`: references of our own images by program, `argocd` and `redis`; None keeps upstream's.
    `ingress_namespaces`: who may reach Argo CD's web server, where the install manifest has one.
    """

    images: Mapping[str, str] | None = None
    origin: Origin | None = None
    tuning: Tuning = field(default_factory=Tuning)
    released: Sequence[tuple[str, str]] = rights.RELEASED
    ingress_namespaces: Sequence[str] = ()
    monitoring_namespace: str = MONITORING_NAMESPACE


def objects(install: Sequence[Object], settings: Settings) -> list[Object]:
    """Return all objects of Argo CD, made from upstream's at one version.

    Raises ValueError when `install` lacks a part that has to be there: it is no install manifest of Argo CD.
    """
    kept = [one for one in placed([each for each in install if each], NAMESPACE) if _is_used(one)]
    _require_parts(kept)
    configuration = tuned(settings.tuning, settings.released, pages=_has_server(kept))
    configuration["argocd-cm"] |= _configuration()
    started_with = digest(configuration)
    for one in kept:
        name = one["metadata"]["name"]
        one["metadata"]["labels"] = {
            **(one["metadata"].get("labels") or {}),
            "app.kubernetes.io/managed-by": "modelwharf",
        }
        if one["kind"] == "ConfigMap" and name in configuration:
            one["data"] = {**(one.get("data") or {}), **configuration[name]}
        if one["kind"] == "ClusterRole" and name == CONTROLLER:
            one["rules"] = rights.controller(settings.released)
        if one["kind"] == "ClusterRole" and name == SERVER:
            one["rules"] = rights.server(settings.released)
        if one["kind"] in _WORKLOAD_KINDS:
            _harden(one, settings, started_with)
    return [
        namespace(NAMESPACE),
        *kept,
        *_network_policies(settings),
        *(_origin_objects(settings.origin) if settings.origin else []),
    ]


def _has_server(kept: Sequence[Object]) -> bool:
    return any((one["kind"], one["metadata"]["name"]) == ("Deployment", SERVER) for one in kept)


def _is_used(one: Object) -> bool:
    kind, name = str(one["kind"]), str(one["metadata"]["name"])
    if name.startswith(_UNUSED):
        return False
    if kind in ("ClusterRole", "ClusterRoleBinding") and name == APPLICATION_SETS:
        return False  # for ApplicationSets outside of Argo CD's namespace; ours are in it
    return kind not in ("NetworkPolicy", "Namespace")  # ours take their place


def _require_parts(kept: Sequence[Object]) -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in kept}
    wanted = {
        ("StatefulSet", CONTROLLER),
        *(("Deployment", name) for name in (REPO_SERVER, APPLICATION_SETS, REDIS)),
        *(("ConfigMap", name) for name in ("argocd-cm", "argocd-cmd-params-cm")),
        *(
            ("CustomResourceDefinition", f"{kind}.argoproj.io")
            for kind in ("applications", "applicationsets", "appprojects")
        ),
    }
    if missing := sorted(wanted - there):
        raise ValueError("not an install manifest of Argo CD: it lacks " + ", ".join(" ".join(one) for one in missing))


def _configuration() -> dict[str, str]:
    return {
        "application.resourceTrackingMethod": "annotation",
        "kustomize.enable": "false",
        "helm.enable": "false",
        "jsonnet.enable": "false",
        "users.anonymous.enabled": "false",
        "exec.enabled": "false",
        "statusbadge.enabled": "false",
    }


def tuned(
    tuning: Tuning, released: Sequence[tuple[str, str]] = rights.RELEASED, *, pages: bool
) -> dict[str, dict[str, str]]:
    """Return what the tuning sets in the two ConfigMaps, by name; `pages`: Argo CD's web pages are to show pods."""
    reconciliation = {
        "timeout.reconciliation": f"{tuning.reconciliation_s}s",
        "timeout.reconciliation.jitter": f"{tuning.jitter_s}s",
    }
    watched = {} if tuning.watch_all else {"resource.inclusions": _watched(released, pages)}
    return {"argocd-cm": reconciliation | watched, "argocd-cmd-params-cm": _parameters(tuning)}


def environment(name: str, tuning: Tuning) -> dict[str, str]:
    """Return the variables that the tuning sets for the workload `name`: what no ConfigMap of Argo CD's offers."""
    found: dict[str, str] = {}
    if name in (CONTROLLER, APPLICATION_SETS):
        for variable, value in (("QPS", tuning.client_qps), ("BURST", tuning.client_burst)):
            if value is not None:
                found[f"ARGOCD_K8S_CLIENT_{variable}"] = str(value)
    if name == CONTROLLER and not tuning.events:
        found["ARGOCD_ENABLE_K8S_EVENT"] = "none"
    return found


def _watched(released: Sequence[tuple[str, str]], pages: bool) -> str:
    """Return the kinds that the application controller watches: what releases consist of, and its own two.

    Every object of a watched kind in the whole cluster is held in its memory, and each change of one is looked at. The
    health of a Deployment is in its own status, so that pods are of interest to somebody who looks at the pages only.
    """
    kinds: dict[str, list[str]] = {"argoproj.io": ["AppProject", "ApplicationSet"]}
    for group, resource in released:
        kinds.setdefault(group, []).append(rights.KINDS[resource])
    if pages:
        kinds[""].append("Pod")
        kinds["apps"].append("ReplicaSet")
    rules = [{"apiGroups": [group], "kinds": sorted(names)} for group, names in sorted(kinds.items())]
    return json.dumps(rules)  # YAML as well


def _parameters(tuning: Tuning) -> dict[str, str]:
    return {
        "controller.status.processors": str(tuning.status_processors),
        "controller.operation.processors": str(tuning.operation_processors),
        "controller.kubectl.parallelism.limit": str(tuning.kubectl_parallelism),
        # Comparing on the server costs a dry run for each object and each look; what is compared here is written by
        # `wharf render` in full, so the comparison that needs no request finds the same.
        "controller.diff.server.side": "false",
        "reposerver.parallelism.limit": str(tuning.repo_parallelism),
        "reposerver.enable.git.submodule": "false",
        "reposerver.allow.oob.symlinks": "false",
        "applicationsetcontroller.concurrent.reconciliations.max": str(tuning.application_sets),
        # Directories of our repository are all that applications are generated from.
        "applicationsetcontroller.enable.scm.providers": "false",
        "applicationsetcontroller.enable.git.submodule": "false",
        "applicationsetcontroller.policy": "sync",
    }


def _harden(workload: Object, settings: Settings, started_with: str) -> None:
    name = workload["metadata"]["name"]
    template = pod_template(workload)
    pod: Object = template["spec"]
    _without_plugin_copy(pod)
    template["metadata"]["annotations"] = {
        **(template["metadata"].get("annotations") or {}),
        "modelwharf.io/configuration": started_with,  # these programs read their parameters when they start
    }
    pod["securityContext"] = {**(pod.get("securityContext") or {}), **pod_security(USER)}
    pod["enableServiceLinks"] = False
    for container in containers(pod):
        container["securityContext"] = {**(container.get("securityContext") or {}), **container_security()}
        container["imagePullPolicy"] = "IfNotPresent"
        container["resources"] = _RESOURCES[name].as_object() if name in _RESOURCES else {}
        if settings.images is not None:
            _use_own_image(container, settings.images)
    if added := environment(name, settings.tuning):
        for container in pod["containers"]:
            own: list[Object] = container.setdefault("env", [])
            own += [{"name": key, "value": value} for key, value in sorted(added.items())]
    if name == REDIS:
        for container in pod["containers"]:
            container.setdefault("readinessProbe", {"tcpSocket": {"port": 6379}, "periodSeconds": 5})
            container.setdefault("livenessProbe", {"tcpSocket": {"port": 6379}, "periodSeconds": 10})
    for container in pod["containers"]:
        if probe := container.get("readinessProbe"):
            probe |= {"initialDelaySeconds": 1, "periodSeconds": 3}  # upstream waits for up to 15 s after each start
    if name == REPO_SERVER and settings.origin is not None:
        template["metadata"]["annotations"]["modelwharf.io/origin"] = settings.origin.identity
        _mount_origin(pod, settings.origin)


def _without_plugin_copy(pod: Object) -> None:
    """Take out the copy of Argo CD's program that plugins in sidecars run, and the volume that it is for.

    There are no plugins here; and its `cp --update=none` of newer versions is unknown to Debian 12's coreutils.
    """
    first = [one for one in pod.get("initContainers") or [] if one["name"] != "copyutil"]
    pod.pop("initContainers", None)
    if first:
        pod["initContainers"] = first
    used = {mount["name"] for one in containers(pod) for mount in one.get("volumeMounts") or []}
    if "volumes" in pod:
        pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] in used]


def _use_own_image(container: Object, images: Mapping[str, str]) -> None:
    is_redis = container["name"] == "redis"
    container["image"] = images["redis" if is_redis else "argocd"]
    if is_redis:
        container.setdefault("command", ["redis-server"])  # upstream's image has an entry point that adds it
    else:
        # No project here asks for signed commits, and the keyring needs gpg, which our image does without.
        container.setdefault("env", []).append({"name": "ARGOCD_GPG_ENABLED", "value": "false"})


def _mount_origin(pod: Object, origin: Origin) -> None:
    """Mount the origin, read-only, and let git read what another user owns.

    The setting must be in a file. Argo CD replaces GIT_CONFIG_COUNT in git's environment by its own, and git clears it
    for the process that it starts to read a `file://` repository; and git ignores the setting in the repository itself.
    """
    volumes: list[Object] = pod.setdefault("volumes", [])
    volumes += [
        {"name": "origin", "persistentVolumeClaim": {"claimName": _volume_name(origin), "readOnly": True}},
        {"name": "git", "configMap": {"name": "modelwharf-git"}},
    ]
    for container in pod["containers"]:
        mounts: list[Object] = container.setdefault("volumeMounts", [])
        mounts += [
            {"name": "origin", "mountPath": origin.mount_path, "readOnly": True},
            {"name": "git", "mountPath": _GIT_FOLDER, "readOnly": True},
        ]
        environment: list[Object] = container.setdefault("env", [])
        environment.append({"name": "GIT_CONFIG_GLOBAL", "value": f"{_GIT_FOLDER}/gitconfig"})


def _volume_name(origin: Origin) -> str:
    # A volume's path cannot be changed afterwards: another path is another volume.
    return f"modelwharf-origin-{hashlib.sha256(origin.host_path.encode()).hexdigest()[:8]}"


def _origin_objects(origin: Origin) -> list[Object]:
    name = _volume_name(origin)
    size = {"storage": "1Gi"}  # must be said, and is not enforced for a folder of the node
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": name, "labels": LABELS},
            "spec": {
                "capacity": size,
                "accessModes": ["ReadOnlyMany"],
                "persistentVolumeReclaimPolicy": "Retain",
                "storageClassName": "",
                "claimRef": {"namespace": NAMESPACE, "name": name},
                "hostPath": {"path": origin.host_path, "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": NAMESPACE, "labels": LABELS},
            "spec": {
                "accessModes": ["ReadOnlyMany"],
                "storageClassName": "",
                "volumeName": name,
                "resources": {"requests": size},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "modelwharf-git", "namespace": NAMESPACE, "labels": LABELS},
            "data": {"gitconfig": f"[safe]\n\tdirectory = {origin.mount_path}\n"},
        },
    ]


def _network_policies(settings: Settings) -> list[Object]:
    def pods(*names: str) -> list[Object]:
        return [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": name}}} for name in names]

    def policy(name: str, ingress: Sequence[Object] | None = None, egress: Sequence[Object] | None = None) -> Object:
        chosen = {"app.kubernetes.io/name": name}
        return network_policy(name, NAMESPACE, pods=chosen, ingress=ingress, egress=egress)

    figures = [from_namespaces(settings.monitoring_namespace)]
    own_egress: list[Object] | None = None
    if settings.origin is not None:
        own_egress = [to_dns(), {"to": pods(REDIS), "ports": tcp(6379)}]
    web = [from_namespaces(*settings.ingress_namespaces)] if settings.ingress_namespaces else []
    return [
        network_policy("default-deny", NAMESPACE, ingress=[]),
        policy(REDIS, [{"from": pods(CONTROLLER, REPO_SERVER, SERVER), "ports": tcp(6379)}]),
        policy(
            REPO_SERVER,
            [
                {"from": pods(CONTROLLER, APPLICATION_SETS, SERVER), "ports": tcp(8081)},
                {"from": figures, "ports": tcp(8084)},
            ],
            own_egress,
        ),
        policy(CONTROLLER, [{"from": figures, "ports": tcp(8082)}]),
        policy(APPLICATION_SETS, [{"from": figures, "ports": tcp(8080)}]),
        policy(
            SERVER,
            [{"from": figures, "ports": tcp(8083)}, *([{"from": web, "ports": tcp(8080)}] if web else [])],
        ),
    ]
