"""A new model is a directory that works as it stands."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ci import cli, files
from ci.errors import Mistake
from ci.new import new
from ci.rendering import argocd
from ci.workspace import Workspace, load_spec


def test_its_contract_and_data_fit_together(workspace: Workspace) -> None:
    from ci.training.model_code import call

    written = new(workspace, "wine")
    assert Path("bentos/wine/service.py") in written
    spec = load_spec(workspace, "wine")
    frame = call(workspace, "wine", "data", "load", None)
    assert list(frame.columns) == [*spec.data.names(), spec.data.target]
    compile((workspace.bentos / "wine" / "service.py").read_text(), "service.py", "exec")


@pytest.mark.parametrize("name", ["Wine", "my-model", "class", "1wine", "../wine"])
def test_a_name_that_cannot_be_used_writes_nothing(workspace: Workspace, name: str) -> None:
    before = sorted(workspace.root.rglob("*"))
    with pytest.raises(Mistake, match="Python identifier and a DNS label"):
        new(workspace, name)
    assert sorted(workspace.root.rglob("*")) == before


@pytest.mark.parametrize("name", ["metrics", "serving", "predictors", "quality", "agent", "mlflow", "spec"])
def test_a_name_that_a_part_of_the_platform_has_writes_nothing(workspace: Workspace, name: str) -> None:
    before = sorted(workspace.root.rglob("*"))
    with pytest.raises(Mistake, match=f"'{name}' is the name of "):
        new(workspace, name)
    assert sorted(workspace.root.rglob("*")) == before


def test_an_existing_model_is_left_alone(workspace: Workspace) -> None:
    before = (workspace.models / "tumor" / "model.yaml").read_text()
    with pytest.raises(Mistake, match=r"models/tumor exists"):
        new(workspace, "tumor")
    assert (workspace.models / "tumor" / "model.yaml").read_text() == before


def test_a_full_disk_leaves_no_half_model(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = files.os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        new(workspace, "wine")
    assert not (workspace.models / "wine").exists()
    assert not (workspace.bentos / "wine").exists()


def test_a_new_team_is_let_in_by_the_projects_of_argo_cd(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project = workspace.root / "gitops/projects/dev.yaml"
    before = project.read_text()
    monkeypatch.chdir(workspace.root)
    assert cli.main(["new", "wine"]) == 0
    assert "gitops/projects/dev.yaml" in capsys.readouterr().out
    assert f"{load_spec(workspace, 'wine').team}-dev" in project.read_text() != before
    assert argocd.render(workspace.root)["gitops/projects/dev.yaml"] == project.read_text()
