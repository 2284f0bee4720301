"""What a workspace remembers of its cluster."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ci.cluster import access
from ci.cluster.access import Access
from ci.errors import Mistake, Unavailable
from ci.local import platform
from ci.workspace import Workspace

NODE = Access("node", Path("/somewhere/kubeconfig"), "modelwharf", "wharf.local", "127.0.0.1:5050", "/origin.git")


def test_what_was_saved_is_loaded_and_forgotten(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert access.load(workspace) is None
    platform.record(workspace, "mlflow", {"url": "http://localhost:5000"})
    access.save(workspace, NODE)
    assert access.load(workspace) == access.require(workspace) == NODE
    access.forget(workspace)
    assert access.load(workspace) is None
    assert platform.recorded(workspace) == {"mlflow": {"url": "http://localhost:5000"}}


def test_without_a_cluster_the_next_step_is_named(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="runs on no cluster") as error:
        access.require(Workspace(tmp_path))
    assert error.value.tip == "bring one up with `make cluster`"


def test_a_broken_record_is_no_cluster(tmp_path: Path) -> None:
    """So that `make cluster` can write it anew."""
    (tmp_path / ".wharf").mkdir()
    for text in ("", "[]", "{", '{"cluster": 5}', '{"cluster": {"provider": "node"}}'):
        (tmp_path / ".wharf" / "platform.json").write_text(text)
        assert access.load(Workspace(tmp_path)) is None


def test_a_kubeconfig_must_be_found_from_everywhere(tmp_path: Path) -> None:
    with pytest.raises(Mistake, match="must be absolute"):
        access.save(Workspace(tmp_path), replace(NODE, kubeconfig=Path("kubeconfig")))


def test_forgetting_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    access.forget(Workspace(tmp_path))
    assert list(tmp_path.iterdir()) == []
