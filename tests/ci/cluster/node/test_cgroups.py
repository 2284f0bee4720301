"""Which processes and cgroups of pods are the node's own, on a machine where another Kubernetes runs, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.cluster.node import cgroups
from ci.cluster.node.layout import Layout
from ci.errors import Unavailable

MINE, RUNNING, LEFT, THEIRS = "pod11-aa", "pod22-bb", "pod33-cc", "pod44-dd"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A node whose kubelet knows one pod, and whose containerd runs a container of another."""
    layout = Layout(tmp_path / "state", tmp_path / "run")
    (layout.kubelet / "pods" / "11-aa").mkdir(parents=True)
    (layout.containerd_tasks / "c0ffee").mkdir(parents=True)
    return layout


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Cgroups v1 with two controllers."""
    root = tmp_path / "cgroup"
    for controller in ("cpu", "memory"):
        top = root / controller / "kubepods"
        for folder in (f"burstable/{MINE}/1", f"{RUNNING}/c0ffee", f"besteffort/{LEFT}"):
            (top / folder).mkdir(parents=True)
    return root


def hold(group: Path, *pids: int) -> Path:
    group.mkdir(parents=True, exist_ok=True)
    (group / "cgroup.procs").write_text("".join(f"{pid}\n" for pid in pids))
    return group / "cgroup.procs"


def test_only_the_processes_of_our_own_pods_are_found(layout: Layout, root: Path) -> None:
    hold(root / "cpu/kubepods/burstable" / MINE / "1", 101, 102)
    hold(root / "memory/kubepods/burstable" / MINE / "1", 101)
    hold(root / "cpu/kubepods" / RUNNING / "c0ffee", 103)
    hold(root / "cpu/kubepods/burstable" / THEIRS / "beef", 201)
    hold(root / "cpu/kubepods" / THEIRS, 202)
    assert cgroups.pids(layout, root) == [101, 102, 103]


def test_without_another_kubernetes_all_groups_go(layout: Layout, root: Path) -> None:
    cgroups.remove(layout, root)
    assert cgroups.tops(root) == []
    assert sorted(path.name for path in root.iterdir()) == ["cpu", "memory"]


def test_beside_the_pods_of_another_kubernetes_only_our_groups_go(layout: Layout, root: Path) -> None:
    theirs = hold(root / "cpu/kubepods/burstable" / THEIRS, 201)
    cgroups.remove(layout, root)
    assert theirs.exists()
    assert not (root / "cpu/kubepods/burstable" / MINE).exists()
    assert not (root / "memory/kubepods" / RUNNING).exists()


def test_a_group_of_ours_that_holds_a_process_is_a_fault(
    layout: Layout, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_GONE_S", 0.1)
    hold(root / "cpu/kubepods/burstable" / MINE, 101)
    with pytest.raises(Unavailable, match=f"{MINE} still holds processes"):
        cgroups.remove(layout, root)
