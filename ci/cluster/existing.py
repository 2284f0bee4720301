"""The provider `existing`: a cluster that is there already, by a context of the user's kubeconfig."""

from __future__ import annotations

import ipaddress
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from ci.cluster.access import Access
from ci.console import say
from ci.errors import Mistake, Refusal, Unavailable, did_you_mean
from ci.workspace import Workspace

# What local clusters call the machine they run on.
_LOCAL_NAMES = {"localhost", "host.docker.internal", "kubernetes.docker.internal"}
_NO_REGISTRY = "wharf.local"


@dataclass(frozen=True)
class Existing:
    """A cluster by its context (None: the kubeconfig's current one).

    `agreed`: the user said yes already. `path`: the kubeconfig of an earlier `up`; a context of that name in another
    file may be another cluster.
    """

    context: str | None = None
    agreed: bool = False
    path: Path | None = None
    name: str = "existing"

    def missing(self) -> str | None:
        try:
            _context(self.path or kubeconfig(), self.context)
        except Mistake as error:
            return error.lines[0]
        return None

    def up(self, workspace: Workspace) -> Access:
        """Return the way to the cluster; nothing is made.

        Raises Refusal (the user says no), Mistake (settings that this cluster cannot work with), Unavailable.
        """
        from ci.cluster import kube

        path = self.path or kubeconfig()
        context, server = _context(path, self.context)
        local = is_local(server)
        if not local and not self.agreed and self.path is None:
            _ask(context, server, "This installs Argo CD, Argo Rollouts and MLflow into")
        found = Access(self.name, path, context, _NO_REGISTRY, _NO_REGISTRY, None)
        client = kube.connect(found)
        if not client.ready():
            raise Unavailable(
                f"context '{context}': {server} does not answer", tip="is the cluster up? `kubectl version`"
            )
        registry = _registry(workspace)
        hosting = _registry_hosting(client)
        if registry == _NO_REGISTRY and hosting is None:
            raise Mistake(
                f"gitops/environments/*.yaml: registry: '{registry}' is only known to clusters that Modelwharf made",
                tip="set it to a registry that the cluster and this machine reach, then `wharf render` and commit",
            )
        push = hosting if registry == _NO_REGISTRY and hosting else registry
        return replace(found, registry=registry, push=push, origin=_origin(workspace, local))

    def down(self, workspace: Workspace) -> list[str]:
        """Remove the platform from the cluster, with what MLflow holds; the cluster is not ours, it stays.

        Raises Refusal when the user says no.
        """
        from ci.cluster import access, platform

        known = access.load(workspace)
        if known is None:
            return []
        context, server = _context(known.kubeconfig, known.context)
        if not is_local(server) and not self.agreed:
            _ask(context, server, "This removes Argo CD, every release, and MLflow with its runs and versions from")
        return platform.remove(workspace, known)


def kubeconfig() -> Path:
    """Return the user's kubeconfig: the first file of KUBECONFIG, else ~/.kube/config."""
    first = os.environ.get("KUBECONFIG", "").split(os.pathsep)[0]
    return Path(first).expanduser().absolute() if first else Path.home() / ".kube" / "config"


def _context(path: Path, wanted: str | None) -> tuple[str, str]:
    """Return the name of the context and the address of its server; raises Mistake when there is none."""
    try:
        raw: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        contexts = {str(each["name"]): each["context"] for each in raw.get("contexts") or []}
        servers = {str(each["name"]): str(each["cluster"]["server"]) for each in raw.get("clusters") or []}
        name = wanted or raw.get("current-context") or ""
    except OSError as error:
        raise Mistake(f"{path}: {error.strerror}", tip="set KUBECONFIG to the kubeconfig of your cluster") from None
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise Mistake(f"{path}: is not a kubeconfig: {str(error).splitlines()[0]}") from None
    if name not in contexts:
        what = f"no context '{name}'{did_you_mean(name, contexts)}" if name else "no current context"
        raise Mistake(f"{path}: {what}", tip=f"name one by --context: {', '.join(contexts) or 'there is none'}")
    cluster = str(contexts[name].get("cluster"))
    if cluster not in servers:
        raise Mistake(f"{path}: context '{name}': there is no cluster '{cluster}'")
    return name, servers[cluster]


def is_local(server: str) -> bool:
    """Tell whether the API server at this address runs on this machine."""
    import psutil

    host = urlsplit(server).hostname or ""
    if host in _LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mine = {a.address.split("%")[0] for addresses in psutil.net_if_addrs().values() for a in addresses}
    return address.is_loopback or address.is_unspecified or str(address) in mine


def _ask(context: str, server: str, what: str) -> None:
    if not sys.stdin.isatty():
        raise Mistake(
            f"context '{context}' ({server}) is not on this machine, and nobody can be asked here",
            tip="say so by --yes when you mean it",
        )
    say(f"  {what} context '{context}' ({server}).")
    sys.stderr.write("  Go on? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise Refusal(f"context '{context}' was left alone")


def _registry(workspace: Workspace) -> str:
    from ci.environments import load_all

    return load_all(workspace.root)[0].registry


def _registry_hosting(client: Any) -> str | None:
    """Return the address of a local registry that the cluster declares (KEP-1755), as this machine reaches it."""
    found = client.get("v1/ConfigMap", "local-registry-hosting", "kube-public")
    try:
        return str(yaml.safe_load(found["data"]["localRegistryHosting.v1"])["host"]) if found else None
    except (yaml.YAMLError, KeyError, TypeError):
        return None


def _origin(workspace: Workspace, local: bool) -> str | None:
    """Return the origin's folder as the nodes see it, None where Argo CD reads a git URL. Raises Mistake."""
    from ci.rendering.argocd import load

    settings = load(workspace.root)
    if settings is None:
        raise Mistake("gitops/argocd.yaml: is missing", tip="restore it with `git checkout gitops/argocd.yaml`")
    if not settings.repository.startswith("file:"):
        return None
    if not local:
        raise Mistake(
            f"gitops/argocd.yaml: repository: {settings.repository} is a folder here, which the cluster cannot read",
            tip="set it to the address of your repository, then `wharf render`, commit and push",
        )
    return str(workspace.state / "origin.git")
