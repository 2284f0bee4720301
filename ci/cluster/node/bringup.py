"""Bring the node up, or repair it: each step does only what is missing."""

from __future__ import annotations

import json
import os
import platform as machine
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from ci.cluster.node import addresses as ranges
from ci.cluster.node import certificates, commands, configuration, network, parts, registry, supervisor
from ci.cluster.node.addresses import Addresses
from ci.cluster.node.layout import NODE, Layout
from ci.console import step
from ci.errors import Mistake, Unavailable
from ci.files import write_atomic
from ci.local import processes
from ci.local.processes import Mark
from ci.shell import CommandFailed, run
from ci.workspace import Workspace

_READY_S = 120.0
_SUPERVISOR_S = 15.0
_CHECK_S = 60.0
_ASK_S = 30.0
_CHECK_POD = "wharf-check"
PROGRAMS = (
    *("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl", "pause"),
)
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

RBAC: list[dict[str, Any]] = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "modelwharf:kubelet-clients"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:kubelet-api-admin",
        },
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "modelwharf:kubelet-clients"}],
    },
]


def claim(layout: Layout, workspace: Workspace) -> None:
    """Make the node this checkout's. Raises Mistake when it is another's that still exists."""
    other = owner(layout)
    if other and other != workspace.root and other.is_dir():
        raise Mistake(
            f"the node of this machine belongs to the checkout {other}, and a machine has one",
            tip="`make cluster-down` there, then run this again",
        )
    if other != workspace.root:
        write_atomic(layout.owner, json.dumps({"root": str(workspace.root)}))


def owner(layout: Layout) -> Path | None:
    """Return the checkout that the node belongs to; None when there is no node."""
    try:
        return Path(json.loads(layout.owner.read_text())["root"])
    except FileNotFoundError:
        return None


def bring_up(layout: Layout, programs: dict[str, Path]) -> Addresses:
    """Bring up what is missing of the node and return its addresses.

    Raises Unavailable with the reason when a part does not become ready in time.
    """
    for folder in (layout.state, layout.run, layout.run / "parts", layout.pod_logs, layout.kubelet):
        folder.mkdir(parents=True, exist_ok=True)
    for folder in (layout.state, layout.run):
        folder.chmod(0o711)  # pods run as other users and mount folders below
    with step("network of the node") as shown:
        network.remember(layout)
        addresses = ranges.load_or_choose(layout.state / "addresses.json")
        shown.note = network.prepare(addresses)
    with step("certificates and configuration") as shown:
        made = certificates.ensure(layout.certificates, addresses)
        shown.note = f"{len(made)} new certificates" if made else "certificates are valid"
        architecture = ARCHITECTURES[machine.machine()]
        *_, manifest = registry.image(programs["pause"].read_bytes(), architecture)
        pause = registry.reference(manifest)
        configuration.write(layout, addresses, sandbox_image=pause, snapshotter=snapshotter(layout.state))
        generation = parts.write(layout.parts, commands.wanted(layout, addresses, programs))
    with step("control plane") as shown:
        shown.note = start_supervisor(layout)
        _wait_parts(layout, generation)
        registry.push_pause(addresses.registry, programs["pause"], architecture)
    kubectl = [str(programs["kubectl"]), f"--kubeconfig={layout.admin}"]
    with step("node") as shown:
        documents = "\n---\n".join(json.dumps(one) for one in RBAC)
        _kubectl([*kubectl, "apply", "--server-side", "--field-manager=modelwharf", "-f", "-"], documents)
        wait_node(kubectl)
        shown.note = "Ready"
    with step("a first pod"):
        _check_pod(kubectl, pause)
    return addresses


# -- the supervisor ----------------------------------------------------------------------------------------------------


def supervisor_mark(layout: Layout) -> Mark | None:
    """Return the supervisor that runs; None when none does."""
    mark = processes.mark_of(_read(layout.run / "supervisor.json"))
    return mark if processes.alive(mark) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def start_supervisor(layout: Layout) -> str:
    """Start the supervisor, or let the one that runs read its parts again; return which it was, in words.

    Raises Unavailable when it does not stay.
    """
    mark = supervisor_mark(layout)
    if mark and _read(layout.run / "supervisor.json").get("code") == supervisor.code():
        os.kill(mark.pid, signal.SIGHUP)
        return "already there"
    if mark:  # of older code: SIGTERM would end the parts too, and the new one adopts them
        os.kill(mark.pid, signal.SIGKILL)
        processes.wait_until(lambda: not processes.alive(mark), 5.0, 0.02)
    command = [sys.executable, "-m", supervisor.__name__]
    options = [f"--parts={layout.parts}", f"--state={layout.state}", f"--run={layout.run}"]
    log = layout.logs / "supervisor.log"
    begun, begins = processes.start(
        [*command, *options],
        state=layout.state,
        role="supervisor",
        log=log,
        env={name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ},
        cwd=Path(__file__).parents[3],
    )
    processes.wait_until(lambda: supervisor_mark(layout) == begun or not processes.alive(begun), _SUPERVISOR_S)
    if not processes.alive(begun):
        raise Unavailable(f"the node's supervisor ended: {processes.last_line(log, begins) or 'it said nothing'}")
    return "started"


def _wait_parts(layout: Layout, generation: str, seconds: float = _READY_S) -> None:
    """Wait until the supervisor took over this writing of the parts and all of them are ready."""
    status: dict[str, Any] = {}

    def waiting_for() -> list[str]:
        if status.get("generation") != generation:
            return ["supervisor"]
        return [name for name, part in status["parts"].items() if not part["ready"]]

    def settled() -> bool:
        nonlocal status
        status = _read(layout.run / "supervisor-status.json")
        return not waiting_for() or supervisor_mark(layout) is None

    processes.wait_until(settled, seconds)
    if left := waiting_for():
        is_gone = supervisor_mark(layout) is None
        log = layout.logs / f"{'supervisor' if is_gone else left[0]}.log"
        what = "the node's supervisor has ended" if is_gone else f"{left[0]} is not ready after {seconds:.0f} seconds"
        raise Unavailable(
            f"{what}: {processes.last_line(log) or 'it said nothing'}",
            tip=f"its log is {log}; the same command again goes on from here",
        )


# -- the node ----------------------------------------------------------------------------------------------------------


def snapshotter(state: Path) -> str:
    """Return how containerd stacks the layers of images: `overlayfs`, or copies where that cannot be stacked again."""
    real = state.resolve()
    kinds = {
        partition.mountpoint: partition.fstype
        for partition in psutil.disk_partitions(all=True)
        if real.is_relative_to(partition.mountpoint)
    }
    return "native" if kinds[max(kinds, key=len)] == "overlay" else "overlayfs"


def _kubectl(command: list[str], stdin: str | None = None) -> None:
    """Run kubectl for what must work now. Raises Unavailable with its last line."""
    try:
        run(command, stdin=stdin, timeout=60)
    except (CommandFailed, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"the node's API server: {_reason(error)}", tip="run the command again") from None


def _reason(error: CommandFailed | subprocess.TimeoutExpired) -> str:
    return (
        error.lines[-1]
        if isinstance(error, CommandFailed)
        else f"kubectl had no answer for {round(error.timeout, 1):g} seconds"
    )


def wait_node(kubectl: list[str], seconds: float = _READY_S) -> None:
    """Wait until the node is Ready. Raises Unavailable with what it, or kubectl, says."""
    said = ""

    def is_ready() -> bool:
        nonlocal said
        try:
            node = json.loads(run([*kubectl, "get", "node", NODE, "--output=json"], timeout=_ASK_S))
        except (CommandFailed, subprocess.TimeoutExpired) as error:
            said = _reason(error)
            return False
        state = next((one for one in node["status"].get("conditions", []) if one["type"] == "Ready"), None)
        said = state["message"] if state else "it has not reported yet"
        return state is not None and state["status"] == "True"

    if not processes.wait_until(is_ready, seconds, 0.3):
        raise Unavailable(f"the node is not Ready after {seconds:.0f} seconds: {said}")


def _check_pod(kubectl: list[str], image: str, seconds: float = _CHECK_S) -> None:
    """See that a pod runs, and remove it. Raises Unavailable with what the kubelet says."""
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": _CHECK_POD, "namespace": "kube-system"},
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [{"name": "pause", "image": image}],
        },
    }
    named = [*kubectl, "--namespace=kube-system"]
    remove = [*named, "delete", "pod", _CHECK_POD, "--ignore-not-found", "--grace-period=0", "--force", "--wait"]
    said = ""

    def runs() -> bool:
        nonlocal said
        try:
            # Until its namespace has a service account the pod is refused; then the first of these makes it.
            run([*named, "apply", "--server-side", "-f", "-"], stdin=json.dumps(pod), timeout=_ASK_S)
            status = json.loads(run([*named, "get", "pod", _CHECK_POD, "--output=json"], timeout=_ASK_S))["status"]
        except (CommandFailed, subprocess.TimeoutExpired) as error:
            said = _reason(error)
            return False
        waiting = [one["state"]["waiting"] for one in status.get("containerStatuses", []) if "waiting" in one["state"]]
        said = " ".join(str(value) for one in waiting for value in one.values()) or status["phase"]
        return status["phase"] == "Running"

    _kubectl(remove)
    try:
        if not processes.wait_until(runs, seconds, 0.3):
            raise Unavailable(f"a pod does not run on the node after {seconds:.0f} seconds: {said}")
    finally:
        _kubectl(remove)
