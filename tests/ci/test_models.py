"""Which models a change touches: what CI trains after a merge."""

from __future__ import annotations

import json

import pytest

from ci import cli
from ci.errors import Mistake
from ci.models import PIPELINE, touched
from ci.shell import git
from ci.workspace import Workspace


@pytest.fixture
def two(workspace: Workspace) -> Workspace:
    """A workspace whose only models are `left` and `right`."""
    git(workspace.root, "rm", "--quiet", "-r", "models", "bentos")
    for name in ("left", "right"):
        for folder in ("models", "bentos"):
            (workspace.root / folder / name).mkdir(parents=True, exist_ok=True)
        (workspace.models / name / "model.yaml").write_text(f"name: {name}\n")
    git(workspace.root, "add", "--all")
    git(workspace.root, "commit", "--quiet", "--message=Two models")
    return workspace


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("models/left/train.py", ["left"]),
        ("bentos/right/service.py", ["right"]),
        ("models/metrics.py", ["left", "right"]),
        ("bentos/serving.py", ["left", "right"]),
        ("uv.lock", ["left", "right"]),
        *((path, ["left", "right"]) for path in PIPELINE),
        ("ci/pages/report.py", []),
        ("gitops/releases/dev/left.yaml", []),
        ("docs/models/left/notes.md", []),
        ("models/gone/model.py", []),
    ],
)
def test_what_a_change_touches(two: Workspace, path: str, names: list[str]) -> None:
    target = two.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("changed\n")
    git(two.root, "add", "--all")
    git(two.root, "commit", "--quiet", "--message=Change")
    assert touched(two, "HEAD~1") == names


def test_a_model_that_moved_or_went_away(two: Workspace) -> None:
    git(two.root, "mv", "models/left", "models/renamed")
    git(two.root, "commit", "--quiet", "--message=Rename")
    assert touched(two, "HEAD~1") == ["renamed"]


def test_the_first_push_touches_all(two: Workspace) -> None:
    assert touched(two, "0" * 40) == ["left", "right"]


@pytest.mark.parametrize("revision", ["f" * 40, "--output=x", "nonsense"])
def test_a_revision_that_is_not_here(two: Workspace, revision: str) -> None:
    with pytest.raises(Mistake, match="--changed: no commit"):
        touched(two, revision)


def test_the_command(two: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(two.root)
    assert cli.main(["models"]) == 0
    assert capsys.readouterr().out == "left\nright\n"
    assert cli.main(["models", "--changed", "HEAD", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
