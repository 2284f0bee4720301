"""Bring the cluster target up, and take it down: provider, images, platform, and the way to MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ci.cluster import access, forward
from ci.console import step
from ci.errors import Mistake
from ci.local import platform as local_platform
from ci.local import processes
from ci.workspace import Workspace

if TYPE_CHECKING:
    from ci.cluster.access import Access
    from ci.cluster.platform import Images
    from ci.cluster.provider import Provider

MLFLOW_NAMESPACE, MLFLOW_SERVICE, MLFLOW_PORT = "modelwharf", "mlflow", 5000
_MLFLOW_LOCAL_PORTS = range(5021, 5040)  # beside those of the local target, so that both may be in a browser's history


def start(workspace: Workspace, provider: Provider) -> str:
    """Bring everything up or repair it, and make it this workspace's target; return MLflow's address.

    Raises Mistake while the local target runs here, and whatever the provider or the platform raise.
    """
    from ci.cluster import platform
    from ci.local import origin

    require_no_local(workspace)
    with step("origin") as shown:
        origin.ensure(workspace)
        shown.note = origin.sync_user(workspace)
    found = provider.up(workspace)
    # From here on the other commands look at the cluster, also when the platform is not whole yet.
    access.save(workspace, found)
    if found.push != found.registry:
        _declare_registry(found)
    platform.apply(workspace, found, _images(workspace, found))
    url = _reach_mlflow(workspace, found)
    local_platform.record(workspace, "mlflow", {"url": url})
    return url


def stop(workspace: Workspace, provider: Provider) -> list[str]:
    """Remove the cluster that the provider made, or the platform from one that was there; return it in words."""
    removed = ["the port-forward"] if forward.stop(workspace) else []
    removed += provider.down(workspace)
    access.forget(workspace)
    local_platform.record(workspace, "mlflow", None)
    return removed


def require_no_local(workspace: Workspace) -> None:
    """Raise Mistake while the local target runs in this workspace: two targets would follow one origin."""
    if processes.owned(workspace.state, "agent", "mlflow", "backend"):
        raise Mistake(
            "the local target runs in this checkout, and a checkout has one target at a time",
            tip="`make down` first, or use another clone",
        )


def _declare_registry(found: Access) -> None:
    """Declare the local registry as KEP-1755 has it, so that other tools find it, and the provider `existing` too."""
    from ci.cluster import kube

    kube.connect(found).apply(
        [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "local-registry-hosting", "namespace": "kube-public"},
                "data": {"localRegistryHosting.v1": f"host: {found.push}\n"},
            }
        ]
    )


def _images(workspace: Workspace, found: Access) -> Images:
    """Build and push what the platform runs; where registries can be reached, only MLflow's image is ours."""
    from ci.cluster.platform import Images
    from ci.images import mlflow

    own: dict[str, str] = {}
    if found.provider == "node":
        from ci.cluster.node import tools as programs
        from ci.images import tools

        own = tools.ensure(found, programs.ensure())
    return Images(mlflow=mlflow.ensure(workspace, found), **own)


def _reach_mlflow(workspace: Workspace, found: Access) -> str:
    """Return the address at which this machine reaches MLflow.

    On the node itself kube-proxy leads to a Service's address; anywhere else a port-forward does.
    """
    from ci.cluster import kube

    if found.provider == "node":
        service = kube.connect(found).get("v1/Service", MLFLOW_SERVICE, MLFLOW_NAMESPACE)
        if service is not None:
            return f"http://{service['spec']['clusterIP']}:{MLFLOW_PORT}"
    with step("way to MLflow") as shown:
        known = local_platform.recorded(workspace).get("mlflow", {}).get("port")
        port = known if isinstance(known, int) else processes.free_port(_MLFLOW_LOCAL_PORTS)
        forward.start(workspace, found, MLFLOW_NAMESPACE, MLFLOW_SERVICE, MLFLOW_PORT, port)
        shown.note = f"http://{processes.HOST}:{port}"
    return shown.note
