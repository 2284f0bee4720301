"""The platform on a cluster: collect what it is made from, apply it, and wait until all of it runs.

The objects come from `infra.platform`, which the Pulumi program uses, too.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from ci.cluster import kube as kubernetes
from ci.cluster import readiness, upstream
from ci.cluster.access import Access
from ci.cluster.kube import Kube
from ci.cluster.node.layout import HERE
from ci.console import step
from ci.environments import Environment, load_all
from ci.errors import Mistake, Unavailable
from ci.images.credentials import credentials
from ci.rendering import argocd as bootstrap
from ci.shell import CommandFailed, git
from ci.workspace import Workspace, load_spec
from infra.platform import argocd, dns, mlflow, rollouts, tenants
from infra.platform.kubernetes import PART_OF, pull_secret

Json = dict[str, Any]

# Pulling takes most of it where images come from the internet; on the node they are beside it.
_READY_S = {"node": 300.0}
_READY_ELSEWHERE_S = 900.0
_LEAST_S = 5.0  # for a look at each part, also when one before it took all the time
_APPLY_S = 120.0
_GONE_S = 180.0
_ROLLOUTS_IMAGE = f"quay.io/argoproj/argo-rollouts:{upstream.PINS['rollouts'].version}"
_NODE_VOLUME = HERE.state / "volumes" / "mlflow"
_MANAGED = "app.kubernetes.io/managed-by=modelwharf"
_DIGEST = "modelwharf.io/applied"
_PARALLEL = 6
_APPLICATION = "argoproj.io/v1alpha1/Application"


@dataclass(frozen=True)
class Images:
    """References by digest. Those of programs are None where upstream's images can be pulled."""

    mlflow: str
    argocd: str | None = None
    redis: str | None = None
    rollouts: str | None = None
    coredns: str | None = None


@dataclass(frozen=True)
class Part:
    """One part of the platform: what a step is called, and its objects."""

    name: str
    objects: list[Json]

    @property
    def workloads(self) -> list[tuple[str, str, str]]:
        """(kind, name, namespace) of everything that has pods."""
        return [
            (one["kind"], one["metadata"]["name"], one["metadata"]["namespace"])
            for one in self.objects
            if one["kind"] in readiness.KINDS
        ]


def apply(workspace: Workspace, access: Access, images: Images) -> None:
    """Make the platform on the cluster what it is to be, and wait until all of it is Ready; safe to repeat.

    Raises Mistake (settings that do not fit, a platform of somebody else's in the cluster), Refusal (an install
    manifest that is not the pinned one), Unavailable (the cluster, or a workload that does not become Ready).
    """
    root = root_objects(workspace)
    with kubernetes.connect(access) as cluster:
        with step("platform: objects") as shown:
            installs = _installs(access)
            _require_ours(cluster, installs.values())
            found = parts(workspace, access, images, installs, _facts(cluster, access))
            for part in found:
                _apply_all(cluster, part)
            shown.note = f"{sum(len(part.objects) for part in found)} objects"
        timeout = _READY_S.get(access.provider, _READY_ELSEWHERE_S)
        ends = time.monotonic() + timeout
        for part in found:
            if part.workloads:
                with step(f"platform: {part.name}"):
                    for kind, name, namespace in part.workloads:
                        readiness.wait_ready(cluster, kind, name, namespace, max(_LEAST_S, ends - time.monotonic()))
        with step("platform: gitops/root.yaml"):
            cluster.apply(root, timeout_s=_APPLY_S)


@dataclass(frozen=True)
class Facts:
    """What the cluster alone knows: the addresses of its DNS, of MLflow's Service and of its nodes."""

    dns: str
    mlflow: str
    nodes: tuple[str, ...]


def parts(
    workspace: Workspace,
    access: Access,
    images: Images,
    installs: Mapping[str, Sequence[Json]],
    facts: Facts,
) -> list[Part]:
    """Return all parts of the platform in the order in which they are waited for.

    Raises Mistake when the settings of the environments, models or Argo CD do not fit.
    """
    on_node = access.provider == "node"
    found: list[Part] = []
    if on_node:
        settings = dns.Settings(_required(images.coredns, "coredns"), facts.dns, forward=_resolvers())
        found.append(Part("CoreDNS", dns.objects(settings)))
    spaces = _tenants(workspace)
    found.append(Part("tenants", tenants.objects(spaces, tenants.Settings())))
    found.append(Part("Argo CD", argocd.objects(installs["argocd"], _argocd_settings(workspace, access, images))))
    image = _required(images.rollouts, "rollouts") if on_node else images.rollouts or _ROLLOUTS_IMAGE
    found.append(Part("Argo Rollouts", rollouts.objects(installs["rollouts"], rollouts.Settings(image))))
    secret = load_all(workspace.root)[0].pull_secret  # the platform's own images are in the first registry
    server = mlflow.Settings(images.mlflow, addresses=(facts.mlflow,), pull_secret=secret)
    if on_node:
        cidrs = tuple(f"{node}/32" for node in facts.nodes)
        server = replace(server, volume=mlflow.Volume(node_path=str(_NODE_VOLUME)), from_addresses=cidrs)
    found.append(Part("MLflow", mlflow.objects(server)))
    found.append(Part("registry credentials", _logins(workspace, spaces)))
    return found


def root_objects(workspace: Workspace) -> list[Json]:
    """Return what is in `gitops/root.yaml` at the main branch of the origin: what is merged is what counts.

    Raises Mistake when it is not there.
    """
    import yaml

    from ci.history import revision

    commit = revision(workspace)
    try:
        text = git(workspace.root, "show", f"{commit}:{bootstrap.ROOT}")
    except CommandFailed:
        raise Mistake(
            f"{bootstrap.ROOT}: is not in commit {commit[:10]} of the main branch",
            tip="`wharf render` writes it; commit and push it",
        ) from None
    return [one for one in yaml.safe_load_all(text) if one]


def remove(workspace: Workspace, access: Access) -> list[str]:
    """Remove the platform from a cluster that stays: all that `apply` and releases made; return it in words.

    Releases go first, while Argo CD is there to delete what they run. Raises Unavailable when something does not go.
    """
    removed: list[str] = []
    with kubernetes.connect(access) as cluster:
        with step("remove the releases"):
            # The root first, or it would make again what is removed here; then what makes the other applications.
            if cluster.get(_APPLICATION, bootstrap.ROOT_NAME, argocd.NAMESPACE):
                cluster.delete(_APPLICATION, bootstrap.ROOT_NAME, argocd.NAMESPACE)
                _wait_gone(cluster, _APPLICATION, bootstrap.ROOT_NAME, argocd.NAMESPACE)
            for kind in ("ApplicationSet", "Application", "AppProject"):
                names = _ours(cluster, f"argoproj.io/v1alpha1/{kind}", argocd.NAMESPACE, labels=None)
                for name in names:
                    cluster.delete(f"argoproj.io/v1alpha1/{kind}", name, argocd.NAMESPACE)
                for name in names:
                    _wait_gone(cluster, f"argoproj.io/v1alpha1/{kind}", name, argocd.NAMESPACE)
        with step("remove the platform"):
            for name in _ours(cluster, "v1/Namespace", None, f"app.kubernetes.io/part-of={PART_OF}"):
                cluster.delete("v1/Namespace", name)
                removed.append(f"namespace {name}")
            for word in removed:
                _wait_gone(cluster, "v1/Namespace", word.removeprefix("namespace "), None)
            for kind in _WITHOUT_NAMESPACE:
                for name in _ours(cluster, kind, None, _MANAGED):
                    cluster.delete(kind, name)
                    removed.append(f"{kind.rpartition('/')[2]} {name}")
    return removed


_WITHOUT_NAMESPACE = (
    "apiextensions.k8s.io/v1/CustomResourceDefinition",
    "rbac.authorization.k8s.io/v1/ClusterRoleBinding",
    "rbac.authorization.k8s.io/v1/ClusterRole",
    "v1/PersistentVolume",
)


def _ours(cluster: Kube, kind: str, namespace: str | None, labels: str | None) -> list[str]:
    try:
        return sorted(one["metadata"]["name"] for one in cluster.list(kind, namespace, labels))
    except kubernetes.Rejected as error:
        if error.status == 404:  # the kind itself is gone already
            return []
        raise


def _wait_gone(cluster: Kube, kind: str, name: str, namespace: str | None) -> None:
    if not cluster.wait(lambda: cluster.get(kind, name, namespace) is None, _GONE_S, 1.0):
        raise Unavailable(
            f"{kind.rpartition('/')[2]} {name} is still there after {_GONE_S:.0f} seconds",
            tip="something in it waits for its controller; run the command again",
        )


def _installs(access: Access) -> dict[str, list[Json]]:
    if access.provider != "node":
        return {program: upstream.pinned(program) for program in upstream.PINS}
    from ci.cluster.node import tools

    built = tools.ensure(upstream.PINS)
    return {program: upstream.parse(built.manifest(program).read_bytes()) for program in upstream.PINS}


def _require_ours(cluster: Kube, installs: Iterable[Sequence[Json]]) -> None:
    """Raise Mistake when the cluster has namespaces or kinds of these names that somebody else put there."""
    wanted = [("v1/Namespace", name) for name in (argocd.NAMESPACE, rollouts.NAMESPACE, mlflow.NAMESPACE)]
    wanted += [
        ("apiextensions.k8s.io/v1/CustomResourceDefinition", one["metadata"]["name"])
        for install in installs
        for one in install
        if one["kind"] == "CustomResourceDefinition"
    ]
    faults: list[str] = []
    for kind, name in wanted:
        found = cluster.get(kind, name)
        labels = ((found or {}).get("metadata") or {}).get("labels") or {}
        if found is not None and labels.get("app.kubernetes.io/managed-by") != "modelwharf":
            faults.append(
                f"{kind.rpartition('/')[2]} {name}: is in the cluster already, and Modelwharf did not make it"
            )
    if faults:
        raise Mistake(faults, tip="use a cluster without Argo CD and Argo Rollouts, or remove them from this one first")


def _facts(cluster: Kube, access: Access) -> Facts:
    """Ask the cluster, and make MLflow's Service first: the server has to be told the address that it gets."""
    from infra.platform.kubernetes import namespace

    cluster.apply([namespace(mlflow.NAMESPACE), mlflow.service()], timeout_s=_APPLY_S)
    service = cluster.get("v1/Service", mlflow.NAME, mlflow.NAMESPACE)
    api = cluster.get("v1/Service", "kubernetes", "default")
    if service is None or api is None:
        raise Unavailable("the cluster has lost a Service that was there a moment ago", tip="run the command again")
    nodes = [
        str(address["address"])
        for node in cluster.list("v1/Node")
        for address in (node.get("status") or {}).get("addresses") or []
        if address["type"] == "InternalIP"
    ]
    # By convention the tenth address of the range of Services, of which the API server has the first.
    name_server = str(ip_address(api["spec"]["clusterIP"]) + 9)
    if access.provider == "node":
        _NODE_VOLUME.mkdir(parents=True, exist_ok=True)
    return Facts(name_server, str(service["spec"]["clusterIP"]), tuple(nodes))


def _apply_all(cluster: Kube, part: Part) -> None:
    """Apply a part.

    Definitions of kinds are hundreds of kilobytes each, and the server takes a second for one: those that carry the
    digest of what would be sent are left alone. All else is sent every time, which repairs what was changed by hand.
    """
    from infra.platform.kubernetes import digest

    definitions: list[Json] = []
    for one in part.objects:
        if one["kind"] == "CustomResourceDefinition":
            stamped = {
                **one,
                "metadata": {**one["metadata"], "annotations": dict(one["metadata"].get("annotations") or {})},
            }
            stamped["metadata"]["annotations"][_DIGEST] = digest(one)
            if not _is_applied(cluster, stamped):
                definitions.append(stamped)
    cluster.apply(definitions, timeout_s=_APPLY_S)
    others = [one for one in part.objects if one["kind"] != "CustomResourceDefinition"]
    first = [one for one in others if one["kind"] == "Namespace"]
    cluster.apply(first, timeout_s=_APPLY_S)
    rest = [one for one in others if one["kind"] != "Namespace"]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        list(pool.map(lambda one: cluster.apply([one], timeout_s=_APPLY_S), rest))


def _is_applied(cluster: Kube, definition: Json) -> bool:
    found = cluster.get("apiextensions.k8s.io/v1/CustomResourceDefinition", definition["metadata"]["name"])
    annotations = ((found or {}).get("metadata") or {}).get("annotations") or {}
    return annotations.get(_DIGEST) == definition["metadata"]["annotations"][_DIGEST]


def _argocd_settings(workspace: Workspace, access: Access, images: Images) -> argocd.Settings:
    settings = bootstrap.load(workspace.root)
    if settings is None:
        raise Mistake(f"{bootstrap.SETTINGS}: is missing: Argo CD needs the address of the repository")
    if settings.namespace != argocd.NAMESPACE:
        raise Mistake(f"{bootstrap.SETTINGS}: namespace: Argo CD is installed into '{argocd.NAMESPACE}'")
    origin: argocd.Origin | None = None
    if settings.repository.startswith("file://"):
        if access.origin is None:
            raise Mistake(
                f"{bootstrap.SETTINGS}: repository: {settings.repository}: the cluster's nodes do not have it"
            )
        mount = unquote(urlsplit(settings.repository).path)
        origin = argocd.Origin(access.origin, mount, _identity(Path(access.origin)))
    own: dict[str, str] | None = None
    if access.provider == "node":
        own = {"argocd": _required(images.argocd, "argocd"), "redis": _required(images.redis, "redis")}
    return argocd.Settings(own, origin)


def _identity(folder: Path) -> str:
    """Return what tells a folder of this machine from its successor; nothing for one that only the nodes have."""
    try:
        found = folder.stat()
    except OSError:
        return ""
    return f"{found.st_dev}-{found.st_ino}"


def _required(image: str | None, program: str) -> str:
    if image is None:
        raise Mistake(f"the single node needs an image of {program}, and there is none")
    return image


def _tenants(workspace: Workspace) -> list[tenants.Tenant]:
    """Return one tenant for each namespace of all models in all environments, released or not."""
    specs = [load_spec(workspace, name) for name in workspace.model_names()]
    found: dict[str, tuple[Environment, set[str]]] = {}
    for environment in load_all(workspace.root):
        for spec in specs:
            namespace = environment.namespace_of(spec.team, spec.name)
            found.setdefault(namespace, (environment, set()))[1].add(spec.team)
    return [
        tenants.Tenant(name, where.name, tuple(sorted(teams)), where.pull_secret)
        for name, (where, teams) in sorted(found.items())
    ]


def _logins(workspace: Workspace, spaces: Sequence[tenants.Tenant]) -> list[Json]:
    """Return the Secrets that environments name by `pull_secret`, from this machine's logins to their registries.

    Without a login here none is made: then somebody else keeps it (External Secrets, the registry's own operator).
    """
    found: list[Json] = []
    for place, environment in enumerate(load_all(workspace.root)):
        host = environment.registry.partition("/")[0]
        login = credentials(host) if environment.pull_secret else None
        if environment.pull_secret and login:
            names = [space.namespace for space in spaces if space.environment == environment.name]
            names += [mlflow.NAMESPACE] if place == 0 else []
            found += [pull_secret(environment.pull_secret, name, host, login.basic) for name in names]
    return found


def _resolvers(path: Path = Path("/etc/resolv.conf")) -> tuple[str, ...]:
    """Return this machine's name servers that a pod can reach: one on a loopback address would be the pod itself."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    words = [line.split() for line in lines]
    named = [word[1].partition("%")[0] for word in words if len(word) > 1 and word[0] == "nameserver"]
    return tuple(name for name in named if not _is_loopback(name))[:3]


def _is_loopback(name: str) -> bool:
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return True
