"""Two promotions at once, from two working copies: the origin decides, its history stays a line, the cluster follows.

Leaves the new version of tumor in dev and the old one in staging and prod.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import NEW, OLD, Cluster

pytestmark = pytest.mark.cluster


@pytest.fixture
def second(tumor: Cluster, tmp_path: Path) -> Iterator[Path]:
    """A second working copy of the clone, on the same target."""
    copy = tmp_path / "second"
    tumor.user.git("worktree", "add", "--quiet", "--detach", str(copy))
    (copy / ".wharf").symlink_to(tumor.workspace.state)
    yield copy
    tumor.user.git("worktree", "remove", "--force", str(copy))


def ended(*running: subprocess.Popen[str]) -> list[tuple[int, str]]:
    """Return the exit codes of commands that run at once, with what they said."""
    said = [one.communicate(timeout=180)[0] for one in running]
    return [(one.returncode, text) for one, text in zip(running, said, strict=True)]


def history_since(cluster: Cluster, commit: str) -> list[str]:
    """Return the subjects of the origin's new commits, oldest first; AssertionError unless they are a line."""
    merges = cluster.user.git("-C", str(cluster.origin), "rev-list", "--min-parents=2", f"{commit}..main")
    assert merges == "", f"merges in the origin: {merges}"
    cluster.user.git("-C", str(cluster.origin), "merge-base", "--is-ancestor", commit, "main")
    return cluster.user.git(
        "-C", str(cluster.origin), "log", "--reverse", "--format=%s", f"{commit}..main"
    ).splitlines()


def test_promotions_to_two_environments_both_arrive(tumor: Cluster, second: Path) -> None:
    before = tumor.main
    both = ended(
        tumor.begin("promote", "tumor", "--to", "staging", "--version", str(NEW)),
        tumor.begin("promote", "tumor", "--to", "dev", "--version", str(OLD), clone=second),
    )
    assert [code for code, _ in both] == [0, 0], both
    assert sorted(history_since(tumor, before)) == [
        f"Promote tumor version {OLD} to dev",
        f"Promote tumor version {NEW} to staging",
    ]
    tumor.wait_live("staging", NEW)
    tumor.wait_live("dev", OLD)


def test_the_same_promotion_twice_and_a_rollback_at_once(tumor: Cluster, second: Path) -> None:
    for environment, version in (("dev", OLD), ("staging", NEW)):
        if tumor.released(environment) != version:
            tumor.user.wharf("promote", "tumor", "--to", environment, "--version", str(version))
    before = tumor.main
    three = ended(
        tumor.begin("promote", "tumor", "--to", "dev", "--version", str(NEW)),
        tumor.begin("promote", "tumor", "--to", "dev", "--version", str(NEW), clone=second),
        tumor.begin("rollback", "tumor", "--env", "staging", clone=second),
    )
    assert [code for code, _ in three] == [0, 0, 0], three
    assert sorted(history_since(tumor, before)) == [
        f"Promote tumor version {NEW} to dev",
        f"Roll tumor back to version {OLD} in staging",
    ]
    tumor.wait_live("dev", NEW)
    tumor.wait_live("staging", OLD)
