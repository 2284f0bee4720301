"""Two promotions at once, from two working copies: the origin decides, its history stays a line, the cluster follows.

Leaves the old version of tumor everywhere.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.cluster import NEW, OLD, Cluster

pytestmark = pytest.mark.cluster
REFUSAL = 3


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


def test_promotions_at_once_arrive_one_after_the_other(tumor: Cluster, second: Path) -> None:
    """Two environments from two working copies, and one of the two promotions twice: a line of two commits."""
    before = tumor.main
    three = ended(
        tumor.begin("promote", "tumor", "--to", "staging", "--version", str(NEW)),
        tumor.begin("promote", "tumor", "--to", "dev", "--version", str(OLD), clone=second),
        tumor.begin("promote", "tumor", "--to", "dev", "--version", str(OLD)),
    )
    assert [code for code, _ in three] == [0, 0, 0], three
    assert sorted(history_since(tumor, before)) == [
        f"Promote tumor version {OLD} to dev",
        f"Promote tumor version {NEW} to staging",
    ]
    tumor.wait_live("staging", NEW)
    tumor.wait_live("dev", OLD)


def test_a_promotion_and_a_rollback_of_one_release_end_at_the_last_commit(tumor: Cluster, second: Path) -> None:
    """Whoever comes second either sees what the first did and goes on from there, or is refused in one line."""
    if tumor.released("staging") != NEW:
        tumor.user.wharf("promote", "tumor", "--to", "staging", "--version", str(NEW))
    before = tumor.main
    both = ended(
        tumor.begin("rollback", "tumor", "--env", "staging"),
        tumor.begin("promote", "tumor", "--to", "staging", "--version", str(OLD), clone=second),
    )
    assert {code for code, _ in both} <= {0, REFUSAL}, both
    assert 0 in [code for code, _ in both], both
    assert not [text for _, text in both if "Traceback" in text]
    assert len(history_since(tumor, before)) == 1  # both wanted the same version
    assert tumor.released("staging") == OLD
    tumor.wait_live("staging", OLD)
