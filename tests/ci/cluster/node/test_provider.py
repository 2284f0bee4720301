"""Who may have the node: one checkout at a time, and only where it can run."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from ci.cluster.node import bringup, cgroups, provider
from ci.cluster.node.layout import Layout
from ci.cluster.node.provider import Node
from ci.errors import Mistake
from ci.workspace import Workspace

ALL_CAPABILITIES = "Name:\tpython\nCapEff:\t000001ffffffffff\n"


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(layout=Layout(tmp_path / "state", tmp_path / "run"))


@pytest.fixture
def able(node: Node, monkeypatch: pytest.MonkeyPatch) -> Node:
    """The node on a machine that has all it needs."""
    monkeypatch.setattr(provider.os, "geteuid", lambda: 0)
    monkeypatch.setattr(provider.machine, "machine", lambda: "x86_64")
    monkeypatch.setattr(provider.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(provider.os, "access", lambda *_: True)
    monkeypatch.setattr(provider, "_lacking_capabilities", lambda _: [])
    monkeypatch.setattr(cgroups, "tops", list)
    return node


def test_nothing_is_missing_on_such_a_machine(able: Node) -> None:
    assert able.missing() is None


@pytest.mark.parametrize(
    ("module", "name", "value", "said"),
    [
        ("sys", "platform", "darwin", "needs Linux"),
        ("machine", "machine", lambda: "riscv64", "this is riscv64"),
        ("os", "geteuid", lambda: 1000, "needs root"),
        ("shutil", "which", lambda _: None, "Debian-like"),
        ("os", "access", lambda *_: False, "cgroups"),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    able: Node, monkeypatch: pytest.MonkeyPatch, module: str, name: str, value: object, said: str
) -> None:
    monkeypatch.setattr(getattr(provider, module), name, value)
    reason = able.missing()
    assert reason is not None
    assert said in reason
    assert "\n" not in reason


def test_another_kubernetes_on_the_machine_is_left_alone(able: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "tops", lambda: [Path("/sys/fs/cgroup/kubepods")])
    assert able.missing() == "another Kubernetes node runs on this machine"
    able.layout.state.mkdir()  # then it is ours
    assert able.missing() is None


def test_capabilities_are_read_from_the_status_of_the_process() -> None:
    assert provider._lacking_capabilities(ALL_CAPABILITIES) == []
    unprivileged = "CapEff:\t00000000a80425fb\n"  # what a container of Docker has
    assert provider._lacking_capabilities(unprivileged) == ["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]


def test_the_node_belongs_to_one_checkout(node: Node, tmp_path: Path) -> None:
    mine, other = (Workspace(tmp_path / name) for name in ("mine", "other"))
    mine.root.mkdir()
    other.root.mkdir()
    bringup.claim(node.layout, mine)
    bringup.claim(node.layout, mine)
    assert bringup.owner(node.layout) == mine.root
    with pytest.raises(Mistake, match="belongs to the checkout"):
        bringup.claim(node.layout, other)
    with pytest.raises(Mistake, match="belongs to the checkout"):
        node.down(other)
    mine.root.rmdir()  # a checkout that was removed holds nothing
    bringup.claim(node.layout, other)
    assert json.loads(node.layout.owner.read_text()) == {"root": str(other.root)}


def test_without_a_node_down_removes_the_kubeconfig_only(node: Node, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "mine")
    kubeconfig = workspace.state / "cluster" / "kubeconfig"
    kubeconfig.parent.mkdir(parents=True)
    kubeconfig.touch()
    assert node.down(workspace) == []
    assert not kubeconfig.exists()
    assert not node.layout.run.exists()


def test_the_default_is_outside_of_every_checkout() -> None:
    layout = Node().layout
    assert layout == Layout()
    assert replace(Node(), name="other").layout is layout
    assert len(os.fsencode(layout.containerd_socket)) + len(".ttrpc") < 108  # the kernel's limit for a socket's path
    assert stat.S_ISDIR(Path("/").stat().st_mode)
