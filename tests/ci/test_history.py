"""History: what ran when and who promoted it, from git alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from ci import cli, history
from ci.errors import Mistake
from ci.promote import promote
from ci.rollback import rollback
from ci.shell import git
from ci.workspace import Workspace
from tests.ci.local_target import main_of, push, save, set_up
from tests.mlflow_server import ROOT
from tests.registry_double import RegistryDouble, registry_double


@pytest.fixture
def registry() -> Generator[RegistryDouble]:
    with registry_double() as double:
        yield double


@pytest.fixture
def home(workspace: Workspace, registry: RegistryDouble) -> Path:
    """tumor: 1 to dev and staging, then 2 to dev by somebody else, rolled back."""
    path = set_up(workspace, registry)
    registry.add("tumor", 1)
    promote(workspace, "tumor", "dev")
    promote(workspace, "tumor", "staging")
    git(workspace.root, "config", "user.name", "Somebody Else")
    registry.add("tumor", 2)
    promote(workspace, "tumor", "dev")
    rollback(workspace, "tumor", "dev")
    return path


def short(records: list[dict[str, object]]) -> list[tuple[object, ...]]:
    return [tuple(record[key] for key in ("environment", "from", "to", "action", "by")) for record in records]


def test_newest_first_with_who_and_what(workspace: Workspace, home: Path) -> None:
    records = history.rows(history.history(workspace, "tumor"))
    assert short(records) == [
        ("dev", 2, 1, "rollback", "Somebody Else"),
        ("dev", 1, 2, "promote", "Somebody Else"),
        ("staging", None, 1, "promote", "Tests"),
        ("dev", None, 1, "promote", "Tests"),
    ]
    assert records[0]["commit"] == main_of(home)


def test_one_environment(workspace: Workspace, home: Path) -> None:
    assert short(history.rows(history.history(workspace, "tumor", "staging"))) == [
        ("staging", None, 1, "promote", "Tests")
    ]


def test_merges_of_people_do_not_double_or_hide_entries(workspace: Workspace, home: Path) -> None:
    save(workspace, "Mine", **{"mine.txt": "mine"})
    git(workspace.root, "pull", "--quiet", "--no-rebase", "--no-edit", "wharf", "main")
    push(workspace)
    assert len(history.history(workspace, "tumor")) == 4


def test_without_a_remote_the_working_trees_commits_count(workspace: Workspace, home: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(home), "clone")
    clone = Workspace(tmp_path / "clone")
    git(clone.root, "remote", "remove", "origin")
    assert len(history.history(clone, "tumor")) == 4


def test_a_model_that_never_ran(
    workspace: Workspace, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    assert cli.main(["history", "tumor", "--env", "prod"]) == 0
    assert capsys.readouterr().out == "tumor was never released to prod\n"
    with pytest.raises(Mistake, match=r"no model 'tumour' in models/ \(did you mean 'tumor'\?\)"):
        history.history(workspace, "tumour")
    with pytest.raises(Mistake, match=r"no environment 'devv' \(did you mean 'dev'\?\)"):
        history.history(workspace, "tumor", "devv")
    with pytest.raises(Mistake, match="is not the name of a model"):
        history.history(workspace, "../x")


def test_a_model_that_was_removed_keeps_its_history(workspace: Workspace, home: Path) -> None:
    git(workspace.root, "rm", "--quiet", "-r", "models/tumor")
    assert len(history.history(workspace, "tumor")) == 4


def test_the_table_and_json(
    workspace: Workspace, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    assert cli.main(["history", "tumor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["WHEN", "ENVIRONMENT", "FROM", "TO", "ACTION", "BY", "COMMIT"]
    assert lines[1].split()[2:6] == ["dev", "2", "1", "rollback"]
    assert lines[4].split()[2:6] == ["dev", "-", "1", "promote"]
    assert cli.main(["history", "tumor", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [record["to"] for record in printed] == [1, 2, 1, 1]
    assert printed[0]["release"]["model"] == "tumor"


def test_history_promote_and_rollback_import_nothing_heavy() -> None:
    code = (
        "import sys, ci.history, ci.promote, ci.rollback, ci.local.origin\n"
        "print([name for name in ('mlflow', 'sklearn', 'pandas', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout == "[]\n"
