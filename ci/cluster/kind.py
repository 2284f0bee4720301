"""The provider `kind`: a cluster in containers of a Docker or Podman engine, with a local registry beside it.

Follows kind's own recipe for a local registry (https://kind.sigs.k8s.io/docs/user/local-registry/): each node is told
by a file in containerd's `certs.d` where the images called `wharf.local/…` are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import yaml

from ci.cluster.access import Access
from ci.console import step
from ci.errors import Mistake, Unavailable
from ci.files import write_atomic
from ci.shell import CommandFailed, run
from ci.workspace import Workspace

CLUSTER = "modelwharf"
REGISTRY = "wharf.local"
REGISTRY_IMAGE = (
    "docker.io/library/registry:3.0.0@sha256:6c5666b861f3505b116bb9aa9b25175e71210414bd010d92035ff64018f9457e"
)
REGISTRY_CONTAINER = "modelwharf-registry"
REGISTRY_PORT = 5050
OLDEST = (0, 27)  # the first whose nodes look into `certs.d` by themselves
_ORIGIN = "/srv/modelwharf/origin.git"
_UP_S = 600


@dataclass(frozen=True)
class Kind:
    """A cluster called `modelwharf`; there is one on a machine."""

    name: str = "kind"

    def missing(self) -> str | None:
        if shutil.which("kind") is None:
            return "the program kind is not installed"
        if _version() < OLDEST:
            return f"kind is older than {'.'.join(map(str, OLDEST))}"
        return None if engine() else "no Docker or Podman engine answers"

    def up(self, workspace: Workspace) -> Access:
        """Make the cluster and its registry unless they are there.

        Raises Mistake (it belongs to another checkout), Unavailable with what kind or the engine said.
        """
        with_engine = _engine_or_unavailable()
        kubeconfig = workspace.state / "cluster" / "kubeconfig"
        kubeconfig.parent.mkdir(parents=True, exist_ok=True)
        origin = workspace.state / "origin.git"
        try:
            with step("local registry") as shown:
                shown.note = _start_registry(with_engine)
            with step("kind cluster") as shown:
                shown.note = _create(with_engine, kubeconfig, origin)
            _connect_registry(with_engine)
        except CommandFailed as error:
            raise _unavailable(error) from None
        return Access(self.name, kubeconfig, f"kind-{CLUSTER}", REGISTRY, f"127.0.0.1:{REGISTRY_PORT}", _ORIGIN)

    def down(self, workspace: Workspace) -> list[str]:
        """Remove the cluster, its registry and the kubeconfig; return it in words.

        Raises Mistake when the cluster belongs to another checkout that still exists, Unavailable with what kind or
        the engine said.
        """
        with_engine = engine()
        if with_engine is None or shutil.which("kind") is None:
            return []
        try:
            return self._remove(workspace, with_engine)
        except CommandFailed as error:
            raise _unavailable(error) from None

    def _remove(self, workspace: Workspace, with_engine: str) -> list[str]:
        removed: list[str] = []
        kubeconfig = workspace.state / "cluster" / "kubeconfig"
        if CLUSTER in _clusters(with_engine):
            _require_origin(with_engine, workspace.state / "origin.git", only_if_there=True)
            # With a kubeconfig named, kind leaves the user's own as it is.
            command = ["kind", "delete", "cluster", "--name", CLUSTER, "--kubeconfig", str(kubeconfig)]
            run(command, env=_env(with_engine), timeout=_UP_S)
            removed.append("the kind cluster")
        kubeconfig.unlink(missing_ok=True)
        if _exists(with_engine, REGISTRY_CONTAINER):
            run([with_engine, "rm", "--force", "--volumes", REGISTRY_CONTAINER], timeout=_UP_S)
            removed.append("its registry")
        return removed


def _unavailable(error: CommandFailed) -> Unavailable:
    said = [line.strip() for line in error.stderr.splitlines() if line.strip()]
    return Unavailable(
        f"{Path(error.command[0]).name}: {said[-1] if said else f'ended with code {error.code}'}",
        tip="run the command again: it goes on from what is there",
    )


def _version() -> tuple[int, ...]:
    found = re.search(r"v(\d+)\.(\d+)", run(["kind", "version"], timeout=30))
    return tuple(map(int, found.groups())) if found else ()


def engine() -> str | None:
    """Return `docker` or `podman`, whichever has an engine that answers; None when neither has."""
    for name in ("docker", "podman"):
        if shutil.which(name) is None:
            continue
        asked = subprocess.run([name, "info"], capture_output=True, timeout=30, check=False)
        if asked.returncode == 0:
            return name
    return None


def configuration(origin: Path) -> str:
    """Return the configuration of the cluster for `kind create cluster --config`, as YAML.

    The node sees the workspace's bare origin read-only. It names no node image: each release of kind pins the one it
    was built for by digest, and supports no other.
    """
    return yaml.safe_dump(
        {
            "kind": "Cluster",
            "apiVersion": "kind.x-k8s.io/v1alpha4",
            "name": CLUSTER,
            "nodes": [
                {
                    "role": "control-plane",
                    "extraMounts": [{"hostPath": str(origin), "containerPath": _ORIGIN, "readOnly": True}],
                }
            ],
        },
        sort_keys=False,
    )


def hosts_toml() -> str:
    """Return containerd's file that sends `wharf.local` to the registry beside the cluster."""
    return f'server = "http://{REGISTRY_CONTAINER}:5000"\n[host."http://{REGISTRY_CONTAINER}:5000"]\n'


def _engine_or_unavailable() -> str:
    found = engine()
    if found is None:
        raise Unavailable("kind: no Docker or Podman engine answers", tip="start Docker or Podman, then run it again")
    return found


def _env(with_engine: str) -> dict[str, str]:
    return {**os.environ, "KIND_EXPERIMENTAL_PROVIDER": with_engine}


def _clusters(with_engine: str) -> list[str]:
    return run(["kind", "get", "clusters"], env=_env(with_engine), timeout=60).split()


def _exists(with_engine: str, container: str) -> bool:
    listed = run([with_engine, "ps", "--all", "--format", "{{.Names}}"], timeout=60).split()
    return container in listed


def _start_registry(with_engine: str) -> str:
    if _exists(with_engine, REGISTRY_CONTAINER):
        run([with_engine, "start", REGISTRY_CONTAINER], timeout=60)
        return "already there"
    address = f"127.0.0.1:{REGISTRY_PORT}:5000"
    command = [with_engine, "run", "--detach", "--restart=always", "--publish", address]
    run([*command, "--name", REGISTRY_CONTAINER, REGISTRY_IMAGE], timeout=_UP_S)
    return f"127.0.0.1:{REGISTRY_PORT}"


def _create(with_engine: str, kubeconfig: Path, origin: Path) -> str:
    env = _env(with_engine)
    if CLUSTER in _clusters(with_engine):
        _require_origin(with_engine, origin)
        run(["kind", "export", "kubeconfig", "--name", CLUSTER, "--kubeconfig", str(kubeconfig)], env=env, timeout=60)
        return "already there"
    config = kubeconfig.with_name("kind.yaml")
    write_atomic(config, configuration(origin))
    origin.mkdir(parents=True, exist_ok=True)  # or the engine would make it, as root
    command = ["kind", "create", "cluster", "--config", str(config), "--kubeconfig", str(kubeconfig), "--wait", "120s"]
    run(command, env=env, timeout=_UP_S)
    return CLUSTER


def _require_origin(with_engine: str, origin: Path, *, only_if_there: bool = False) -> None:
    """Raise Mistake when the cluster follows another checkout (with `only_if_there`: one that still exists)."""
    form = '{{range .Mounts}}{{if eq .Destination "' + _ORIGIN + '"}}{{.Source}}{{end}}{{end}}'
    source = run([with_engine, "inspect", "--format", form, f"{CLUSTER}-control-plane"], timeout=60).strip()
    if not source or Path(source) == origin:
        return
    is_there = Path(source).exists()
    if is_there or not only_if_there:
        raise Mistake(
            f"the kind cluster '{CLUSTER}' follows {source}, another checkout{'' if is_there else ', which is gone'}",
            tip=f"`make cluster-down` {'there' if is_there else 'here'} removes it",
        )


def _connect_registry(with_engine: str) -> None:
    form = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}"
    networks = run([with_engine, "inspect", "--format", form, REGISTRY_CONTAINER], timeout=60).split()
    if "kind" not in networks:
        run([with_engine, "network", "connect", "kind", REGISTRY_CONTAINER], timeout=60)
    nodes = run(["kind", "get", "nodes", "--name", CLUSTER], env=_env(with_engine), timeout=60).split()
    for node in nodes:
        folder = f"/etc/containerd/certs.d/{REGISTRY}"
        run([with_engine, "exec", node, "mkdir", "-p", folder], timeout=60)
        run(
            [with_engine, "exec", "--interactive", node, "cp", "/dev/stdin", f"{folder}/hosts.toml"],
            stdin=hosts_toml(),
            timeout=60,
        )
