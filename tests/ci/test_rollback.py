"""Rollbacks: which release comes back, that the bad one never does, and what cannot be rolled back."""

from __future__ import annotations

import json
from collections.abc import Generator
from pathlib import Path

import pytest

from ci import cli
from ci.errors import Mistake
from ci.promote import promote
from ci.rollback import rollback
from ci.shell import git
from ci.workspace import Workspace
from tests.ci.local_target import main_of, released, set_up, standing_of
from tests.registry_double import RegistryDouble, registry_double


@pytest.fixture
def registry() -> Generator[RegistryDouble]:
    with registry_double() as double:
        yield double


@pytest.fixture
def home(workspace: Workspace, registry: RegistryDouble) -> Path:
    """Versions 1, 2 and 3 were promoted to dev, one after the other."""
    path = set_up(workspace, registry)
    for number in (1, 2, 3):
        registry.add("tumor", number)
        promote(workspace, "tumor", "dev")
    return path


def test_the_release_before_comes_back_byte_for_byte(workspace: Workspace, home: Path) -> None:
    before = standing_of(workspace)
    second = git(home, "rev-parse", "main~1:gitops/releases/dev/tumor.yaml")
    rendered = git(home, "rev-parse", "main~1:gitops/rendered/dev/tumor")
    made = rollback(workspace, "tumor", "dev")
    assert made.summary.startswith("dev/tumor: version 2 (was 3) is released, commit ")
    assert (made.action, made.version, made.previous) == ("rollback", 2, 3)
    assert git(home, "rev-parse", "main:gitops/releases/dev/tumor.yaml") == second
    assert git(home, "rev-parse", "main:gitops/rendered/dev/tumor") == rendered
    assert git(home, "log", "-1", "--format=%s%n%(trailers:only)", "main").splitlines() == [
        "Roll tumor back to version 2 in dev",
        "Wharf-Release: dev/tumor@2",
        "Wharf-Action: rollback",
    ]
    assert standing_of(workspace) == before


def test_the_registry_is_not_asked(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    registry.calls.clear()
    rollback(workspace, "tumor", "dev")
    assert registry.calls == []


def test_twice_goes_back_two_and_never_forth(workspace: Workspace, home: Path) -> None:
    assert [rollback(workspace, "tumor", "dev").version for _ in range(2)] == [2, 1]
    with pytest.raises(Mistake, match="version 1 is the first release of 'tumor' in dev, or all before it were"):
        rollback(workspace, "tumor", "dev")


def test_after_a_new_promotion_the_version_before_it_comes_back(
    workspace: Workspace, home: Path, registry: RegistryDouble
) -> None:
    rollback(workspace, "tumor", "dev")
    registry.add("tumor", 4)
    promote(workspace, "tumor", "dev")
    assert rollback(workspace, "tumor", "dev").version == 2  # 3 was rolled back: skipped


def test_the_same_version_built_anew_is_another_release(
    workspace: Workspace, home: Path, registry: RegistryDouble
) -> None:
    ran = released(home, "dev", "tumor")
    registry.add("tumor", 3, bento="tumor:" + "0" * 16, image="wharf.local/tumor@sha256:" + "0" * 64)
    promote(workspace, "tumor", "dev")
    rollback(workspace, "tumor", "dev")
    assert released(home, "dev", "tumor") == ran


def test_a_given_version(workspace: Workspace, home: Path) -> None:
    assert rollback(workspace, "tumor", "dev", to_version=1).version == 1
    assert rollback(workspace, "tumor", "dev", to_version=1).changed is False
    assert rollback(workspace, "tumor", "dev", to_version=3).version == 3  # a person may say so
    with pytest.raises(Mistake, match="version 9 of 'tumor' never ran in dev; these did: 1, 2, 3"):
        rollback(workspace, "tumor", "dev", to_version=9)


def test_nothing_to_roll_back(workspace: Workspace, home: Path) -> None:
    start = main_of(home)
    with pytest.raises(Mistake, match="nothing of 'tumor' is released in prod: there is nothing to roll back"):
        rollback(workspace, "tumor", "prod")
    with pytest.raises(Mistake, match=r"no environment 'devv' in gitops/environments/ \(did you mean 'dev'\?\)"):
        rollback(workspace, "tumor", "devv")
    with pytest.raises(Mistake, match="no model 'tumour'"):
        rollback(workspace, "tumour", "dev")
    assert main_of(home) == start


def test_the_command(
    workspace: Workspace, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.root)
    assert cli.main(["rollback", "tumor", "--env", "dev", "--dry-run"]) == 0
    assert "+version: 2" in capsys.readouterr().out
    assert cli.main(["rollback", "tumor", "--env", "dev", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["action"], printed["version"], printed["commit"]) == ("rollback", 2, main_of(home))
