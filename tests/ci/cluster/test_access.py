"""What a workspace remembers of its cluster."""

from __future__ import annotations

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
    with pytest.raises(Unavailable, match="has no cluster") as error:
        access.require(Workspace(tmp_path))
    assert error.value.tip == "bring one up with `make cluster`"


@pytest.mark.parametrize("entry", [{"provider": "node"}, {"kubeconfig": "x", "extra": 1}])
def test_a_broken_entry_is_refused_in_one_line(tmp_path: Path, entry: dict[str, object]) -> None:
    platform.record(Workspace(tmp_path), "cluster", entry)
    with pytest.raises(Mistake, match=r"^\.wharf/platform\.json: cluster: must be a mapping of") as error:
        access.load(Workspace(tmp_path))
    assert error.value.tip == "`make cluster` writes it anew"
