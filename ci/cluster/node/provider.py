"""The provider `node`: this machine becomes a Kubernetes node, without Docker or any other engine."""

from __future__ import annotations

import os
import platform as machine
import shutil
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from ci.cluster.access import Access
from ci.cluster.node import bringup, cgroups, configuration, teardown
from ci.cluster.node.certificates import write_private
from ci.cluster.node.layout import HERE, REGISTRY_NAME, Layout
from ci.console import say
from ci.errors import Mistake
from ci.local import processes
from ci.workspace import Workspace

_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_TOOLS = ("kubernetes", "pause")


@dataclass(frozen=True)
class Node:
    """One real node; there is one on a machine."""

    name: str = "node"
    layout: Layout = HERE

    def missing(self) -> str | None:
        """Say in one line why this machine cannot become a node; None when it can."""
        if sys.platform != "linux":
            return "needs Linux"
        if machine.machine() not in bringup.ARCHITECTURES:
            return f"needs one of {', '.join(bringup.ARCHITECTURES)}, this is {machine.machine()}"
        if os.geteuid() != 0:
            return "needs root"
        if shutil.which("apt-get") is None:
            return "needs a Debian-like system (there is no apt-get)"
        if lacking := _lacking_capabilities(Path("/proc/self/status").read_text()):
            return f"needs a privileged container or a whole machine ({', '.join(lacking)} is missing)"
        if not os.access(cgroups.ROOT, os.W_OK):
            return f"needs cgroups that can be written ({cgroups.ROOT} is read-only)"
        if not self.layout.state.exists() and cgroups.tops():
            return "another Kubernetes node runs on this machine"
        return None

    def up(self, workspace: Workspace) -> Access:
        """Bring the node up, or repair what it lacks.

        Raises Mistake (it belongs to another checkout), Unavailable (a part, a package or a program is missing).
        """
        from ci.cluster.node import packages, tools

        with self._alone():
            bringup.claim(self.layout, workspace)
            packages.ensure()
            built = tools.ensure(_TOOLS)
            addresses = bringup.bring_up(self.layout, {name: built.path(name) for name in bringup.PROGRAMS})
            kubeconfig = _kubeconfig(workspace)
            kubeconfig.parent.mkdir(parents=True, exist_ok=True)
            write_private(kubeconfig, self.layout.admin.read_bytes())
        return Access(
            provider=self.name,
            kubeconfig=kubeconfig,
            context=configuration.CONTEXT,
            registry=REGISTRY_NAME,
            push=addresses.registry,
            origin=str(workspace.state / "origin.git"),
        )

    def down(self, workspace: Workspace) -> list[str]:
        """Remove the node and return it in words. Raises Mistake when it belongs to another checkout."""
        other = bringup.owner(self.layout)
        if other and other != workspace.root and other.is_dir():
            raise Mistake(
                f"the node of this machine belongs to the checkout {other}", tip="`make cluster-down` there removes it"
            )
        _kubeconfig(workspace).unlink(missing_ok=True)
        if not self.layout.state.exists() and not self.layout.run.exists():
            return []
        with self._alone():
            return teardown.take_down(self.layout)

    def _alone(self) -> AbstractContextManager[bool]:
        """Let one bring-up or removal work at a time."""
        return processes.locked(
            self.layout.run / "node.lock", busy=lambda: say("  another command works on the node: waiting for it")
        )


def _kubeconfig(workspace: Workspace) -> Path:
    return workspace.state / "cluster" / "kubeconfig"


def _lacking_capabilities(status: str) -> list[str]:
    """Return the capabilities that a node needs and the process with this `/proc/PID/status` does not have."""
    held = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:")), 0)
    return [name for name, bit in _CAPABILITIES.items() if not held >> bit & 1]
