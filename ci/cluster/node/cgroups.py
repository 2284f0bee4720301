"""The cgroups of the node's pods. Every kubelet calls the group above its pods `kubepods`, so another Kubernetes that
was started on this machine later shares ours: what belongs to the node is known by its pods and containers."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ci.cluster.node.layout import Layout
from ci.errors import Unavailable
from ci.local import processes

ROOT = Path("/sys/fs/cgroup")
_PODS = "kubepods"
_GONE_S = 5.0


def tops(root: Path = ROOT) -> list[Path]:
    """Return the group above all pods in every hierarchy: one with cgroups v2, one for each controller with v1."""
    return [group for group in (root / _PODS, *root.glob(f"*/{_PODS}")) if group.is_dir()]


def pids(layout: Layout, root: Path = ROOT) -> list[int]:
    """Return the processes in the groups of the node's own pods."""
    return sorted(_held(_ours(layout, root)) - {os.getpid(), 0})


def remove(layout: Layout, root: Path = ROOT) -> None:
    """Remove the groups of the node's pods, and those above them unless another Kubernetes has pods there.

    Raises Unavailable when one of ours still holds a process.
    """
    wanted = _ours(layout, root)
    if not _held(tops(root)) - _held(wanted):
        wanted = tops(root)  # nobody runs there: also what is left of pods of which nothing is known any more
    for group in wanted:
        for folder, _, _ in os.walk(group, topdown=False):
            if not processes.wait_until(lambda folder=folder: _removed(Path(folder)), _GONE_S, 0.05):
                raise Unavailable(f"the cgroup {folder} still holds processes", tip="run the same command again")


def _ours(layout: Layout, root: Path) -> list[Path]:
    """Return the groups of pods that our kubelet has a folder of, or in which a container of our containerd runs."""
    pods = _names(layout.kubelet / "pods")
    containers = _names(layout.containerd_tasks)
    # Of the class Guaranteed they are directly below, of the others in `burstable` and `besteffort`.
    groups = [group for top in tops(root) for pattern in ("pod*", "*/pod*") for group in top.glob(pattern)]
    return [group for group in groups if group.name.removeprefix("pod") in pods or containers & _names(group)]


def _names(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except OSError:  # it is not there, or went meanwhile
        return set()


def _held(groups: list[Path]) -> set[int]:
    found: set[int] = set()
    for group in groups:
        for folder, _, files in os.walk(group):
            if "cgroup.procs" in files:
                with contextlib.suppress(OSError):  # the group was removed meanwhile
                    found.update(map(int, Path(folder, "cgroup.procs").read_text().split()))
    return found


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True
