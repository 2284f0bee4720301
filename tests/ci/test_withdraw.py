"""Releases that mean nothing on this machine leave the local origin, and can be made again."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from ci.history import history
from ci.promote import promote
from ci.shell import git
from ci.withdraw import withdraw
from ci.workspace import Workspace
from tests.ci.local_target import main_of, set_up, standing_of
from tests.registry_double import RegistryDouble, registry_double


@pytest.fixture
def registry() -> Generator[RegistryDouble]:
    with registry_double() as double:
        yield double


def test_one_commit_removes_them_and_a_promotion_brings_them_back(
    workspace: Workspace, registry: RegistryDouble
) -> None:
    home = set_up(workspace, registry)
    registry.add("tumor", 1)
    promote(workspace, "tumor", "dev")
    promote(workspace, "tumor", "staging")
    before, commits = standing_of(workspace), int(git(home, "rev-list", "--count", "main"))
    commit = withdraw(workspace, {("tumor", "dev"), ("tumor", "staging"), ("digits", "dev")})
    assert commit == main_of(home)
    assert int(git(home, "rev-list", "--count", "main")) == commits + 1
    assert git(home, "ls-tree", "-r", "--name-only", "main", "gitops/releases", "gitops/rendered") == ""
    assert git(home, "log", "-1", "--format=%(trailers:only)", "main").splitlines()[:3] == [
        "Wharf-Release: dev/tumor@1",
        "Wharf-Release: staging/tumor@1",
        "Wharf-Action: withdraw",
    ]
    assert standing_of(workspace) == before  # the user's branch, index and files
    assert promote(workspace, "tumor", "dev").previous is None
    assert [entry.action for entry in history(workspace, "tumor", "dev")] == ["promote", "withdraw", "promote"]


def test_what_is_not_released_needs_no_commit(workspace: Workspace, registry: RegistryDouble) -> None:
    home = set_up(workspace, registry)
    before = main_of(home)
    assert withdraw(workspace, {("tumor", "dev")}) is None
    assert main_of(home) == before
