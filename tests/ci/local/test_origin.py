"""The local origin: made whole, judged by the pushed code, refusing in words, never touching the user's branch."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from ci.errors import Mistake, Refusal
from ci.git import remote
from ci.local import origin
from ci.shell import CommandFailed, git
from ci.workspace import Workspace
from tests.ci.local_target import judged, main_of, push, save, set_up, standing_of
from tests.registry_double import RegistryDouble, registry_double


@pytest.fixture
def registry() -> Generator[RegistryDouble]:
    with registry_double() as double:
        yield double


@pytest.fixture
def home(workspace: Workspace, registry: RegistryDouble) -> Path:
    return set_up(workspace, registry)


def refused(workspace: Workspace, refs: str) -> list[str]:
    """Push and return what the origin said."""
    with pytest.raises(CommandFailed) as caught:
        push(workspace, refs)
    return remote.remote_lines(caught.value.stderr)


def test_it_starts_at_the_users_head_and_changes_nothing_of_theirs(
    workspace: Workspace, registry: RegistryDouble
) -> None:
    before = standing_of(workspace)
    home = origin.ensure(workspace)
    assert home == workspace.state / "origin.git"
    assert main_of(home) == before["head"]
    assert standing_of(workspace) == before
    assert git(workspace.root, "remote", "get-url", "wharf") == str(home)
    assert not list(workspace.state.glob(".origin.git.*"))


def test_ensure_again_changes_nothing(workspace: Workspace, home: Path) -> None:
    save(workspace, "One more", **{"README.md": "more"})
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()}
    origin.ensure(workspace)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if path.is_file()} == before


def test_what_a_killed_creation_left_is_removed(workspace: Workspace) -> None:
    left = workspace.state / ".origin.git.killed"
    left.mkdir(parents=True)
    (left / "HEAD").write_text("half")
    assert main_of(origin.ensure(workspace)) == git(workspace.root, "rev-parse", "HEAD")
    assert not left.exists()


def test_a_hook_that_was_damaged_is_written_again(workspace: Workspace, home: Path) -> None:
    hook = home / "hooks" / "pre-receive"
    good = hook.read_text()
    hook.write_text("#!/bin/sh\nexit 0\n")
    hook.chmod(0o644)
    origin.ensure(workspace)
    assert hook.read_text() == good
    assert os.access(hook, os.X_OK)


def test_a_remote_of_that_name_that_points_elsewhere_is_left_alone(workspace: Workspace) -> None:
    git(workspace.root, "remote", "add", "wharf", "https://git.example.com/team/models.git")
    with pytest.raises(Mistake, match=r"'wharf' points to https://git\.example\.com/team/models\.git"):
        origin.ensure(workspace)
    assert not (workspace.state / "origin.git").exists()


def test_a_clone_that_was_moved_finds_its_origin_again(workspace: Workspace, home: Path, tmp_path: Path) -> None:
    workspace.root.rename(tmp_path / "moved")
    moved = Workspace(tmp_path / "moved")
    origin.ensure(moved)
    assert git(moved.root, "remote", "get-url", "wharf") == str(moved.state / "origin.git")
    save(moved, "After the move", **{"README.md": "moved"})
    push(moved)
    assert main_of(moved.state / "origin.git") == git(moved.root, "rev-parse", "HEAD")


def test_a_shallow_clone_can_be_where_it_starts(workspace: Workspace, tmp_path: Path) -> None:
    save(workspace, "Second", **{"README.md": "2"})
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{workspace.root}", "shallow")
    shallow = Workspace(tmp_path / "shallow")
    assert main_of(origin.ensure(shallow)) == git(shallow.root, "rev-parse", "HEAD")


def test_the_pushed_tree_is_judged_by_its_own_code(
    workspace: Workspace, home: Path, registry: RegistryDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere/else")
    old = main_of(home)
    (workspace.root / "not committed.txt").write_text("x")
    new = save(workspace, "New", **{"README.md": "new"})
    (workspace.root / "README.md").write_text("edited after the commit")
    push(workspace)
    (call,) = judged(home)
    tree = home / "wharf" / "tree"
    assert call["argv"] == ["validate", "--root", str(tree), "--git-dir", str(home), "--old", old, "--new", new]
    assert call["judge"] == str(tree / "ci" / "cli.py")
    assert call["cwd"] == str(tree)
    env = call["env"]
    assert isinstance(env, dict)
    assert env["MLFLOW_TRACKING_URI"] == registry.url
    assert env["PYTHONPATH"] == str(tree)
    assert (tree / "README.md").read_text() == "new"
    assert main_of(home) == new


def test_the_registry_of_the_environment_wins(
    workspace: Workspace, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    save(workspace, "New", **{"README.md": "new"})
    push(workspace)
    env = judged(home)[0]["env"]
    assert isinstance(env, dict)
    assert env["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"


def test_a_refusal_reaches_the_pusher_and_main_stays(workspace: Workspace, home: Path) -> None:
    before = main_of(home)
    save(workspace, "Bad", REFUSE="ERROR  models/tumor/model.yaml: gate.metrix: unknown key\nTIP    correct it\n")
    assert refused(workspace, "HEAD:main") == [
        "ERROR  models/tumor/model.yaml: gate.metrix: unknown key",
        "TIP  correct it",
    ]
    assert main_of(home) == before
    (workspace.root / "REFUSE").unlink()
    good = save(workspace, "Good")
    push(workspace)
    assert main_of(home) == good


def test_a_judge_that_crashes_refuses(workspace: Workspace, home: Path) -> None:
    before = main_of(home)
    save(workspace, "Broken", **{"ci/cli.py": "import nonsense_that_is_not_there\n"})
    assert "nonsense_that_is_not_there" in "\n".join(refused(workspace, "HEAD:main"))
    assert main_of(home) == before


def test_without_its_python_the_hook_refuses_in_words(workspace: Workspace, home: Path) -> None:
    hook = home / "hooks" / "pre-receive"
    hook.write_text(hook.read_text().replace(sys.executable, "/gone/python"))
    save(workspace, "New", **{"README.md": "new"})
    assert refused(workspace, "HEAD:main") == [
        "ERROR  /gone/python is gone, so nothing can be checked: run 'make up', then push again"
    ]


@pytest.mark.parametrize(
    ("refs", "line"),
    [
        (":main", "main cannot be deleted: it is what runs"),
        ("HEAD~1:main --force", "main only moves forward: `git pull --no-rebase wharf main` first, then push again"),
        ("HEAD:feature", "refs/heads/feature is not taken: this origin has main and, for proposals, promote/*"),
        ("HEAD:refs/tags/v1", "refs/tags/v1 is not taken: this origin has main and, for proposals, promote/*"),
    ],
)
def test_what_the_origin_does_not_take(workspace: Workspace, home: Path, refs: str, line: str) -> None:
    before = git(home, "for-each-ref")
    assert refused(workspace, refs) == [f"ERROR  {line}"]
    assert git(home, "for-each-ref") == before


def test_a_proposal_is_judged_against_main_and_can_be_removed(workspace: Workspace, home: Path) -> None:
    start = main_of(home)
    new = save(workspace, "New", **{"README.md": "new"})
    push(workspace, "HEAD:promote/dev-tumor-v2")
    argv = judged(home)[0]["argv"]
    assert isinstance(argv, list)
    assert argv[-4:] == ["--old", start, "--new", new]
    assert main_of(home) == start
    save(workspace, "Bad", REFUSE="ERROR  no\n")
    assert refused(workspace, "HEAD:promote/dev-tumor-v3") == ["ERROR  no"]
    push(workspace, ":promote/dev-tumor-v2")
    assert git(home, "for-each-ref", "--format=%(refname)") == "refs/heads/main"


def test_a_checkout_that_was_killed_is_made_again(workspace: Workspace, home: Path) -> None:
    save(workspace, "One", **{"README.md": "one"})
    push(workspace)
    checked_out = home / "wharf"
    (checked_out / "unfinished").touch()  # as left by kill -9 between the first and the last file
    (checked_out / "index.lock").touch()
    (checked_out / "tree" / "REFUSE").write_text("ERROR  a leftover was judged\n")
    new = save(workspace, "Two", **{"README.md": "two"})
    push(workspace)
    assert main_of(home) == new


def test_a_checkout_that_cannot_be_written_refuses_in_one_line(workspace: Workspace, home: Path) -> None:
    (home / "wharf").mkdir()
    (home / "wharf" / "index.lock").mkdir()  # in the way of git's index, for root too
    (home / "wharf" / "index.lock" / "x").touch()
    before = main_of(home)
    save(workspace, "New", **{"README.md": "new"})
    (line,) = refused(workspace, "HEAD:main")
    assert line.startswith("ERROR  the push could not be checked, so it is refused: ")
    assert main_of(home) == before


def test_a_push_killed_while_it_is_judged_leaves_main_and_can_be_repeated(workspace: Workspace, home: Path) -> None:
    before = main_of(home)
    new = save(workspace, "Slow", SLOW="2", REFUSE="")
    pushing = subprocess.Popen(
        ["git", "push", "--quiet", "wharf", "HEAD:main"], cwd=workspace.root, start_new_session=True
    )
    deadline = time.monotonic() + 20
    while not (home / "judging").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(pushing.pid, 9)  # git, the hook and the judge at once
    pushing.wait()
    assert main_of(home) == before
    (workspace.root / "SLOW").unlink()
    (workspace.root / "REFUSE").unlink()
    quick = save(workspace, "Quick")
    push(workspace)
    assert main_of(home) == quick
    assert git(home, "merge-base", "--is-ancestor", new, quick) == ""


def test_two_pushes_at_once_are_judged_one_after_the_other(workspace: Workspace, home: Path, tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    git(tmp_path, "clone", "--quiet", str(home), str(clone))
    first = save(workspace, "First", **{"README.md": "first"})
    git(clone, "-c", "user.name=x", "-c", "user.email=x@y", "commit", "--quiet", "--allow-empty", "-m", "Second")
    commands = [("wharf", workspace.root), ("origin", clone)]
    running = [
        subprocess.Popen(["git", "push", "--quiet", name, "HEAD:main"], cwd=root, stderr=subprocess.PIPE, text=True)
        for name, root in commands
    ]
    errors = [process.communicate()[1] for process in running]
    assert sorted(process.returncode == 0 for process in running) == [False, True], errors
    assert main_of(home) in {first, git(clone, "rev-parse", "HEAD")}


class TestSyncUser:
    def test_nothing_to_do(self, workspace: Workspace, home: Path) -> None:
        assert origin.sync_user(workspace) == "the origin has your commits"

    def test_new_commits_go_there(self, workspace: Workspace, home: Path) -> None:
        save(workspace, "One", **{"README.md": "one"})
        new = save(workspace, "Two", **{"README.md": "two"})
        assert origin.sync_user(workspace) == "2 commits of yours went to the origin"
        assert main_of(home) == new

    def test_edits_that_are_not_committed_are_said(self, workspace: Workspace, home: Path) -> None:
        (workspace.root / "note.txt").write_text("x")
        assert origin.sync_user(workspace) == (
            "the origin has your commits (1 changed file is not committed: the origin sees commits only)"
        )

    def test_behind_says_how_to_get_the_releases(self, workspace: Workspace, home: Path) -> None:
        save(workspace, "One", **{"README.md": "one"})
        push(workspace)
        git(workspace.root, "reset", "--quiet", "--hard", "HEAD~1")
        before = standing_of(workspace)
        assert origin.sync_user(workspace) == "the origin is 1 commit ahead of you: `git pull wharf main` gets them"
        assert standing_of(workspace) == before

    def test_diverged_says_the_commands_and_they_work(self, workspace: Workspace, home: Path) -> None:
        save(workspace, "Theirs", **{"README.md": "theirs"})
        push(workspace)
        git(workspace.root, "reset", "--quiet", "--hard", "HEAD~1")
        save(workspace, "Mine", **{"mine.txt": "mine"})
        before = standing_of(workspace)
        said = origin.sync_user(workspace)
        assert standing_of(workspace) == before
        command = said.split("`")[1]
        subprocess.run(
            ["bash", "-ec", command],
            cwd=workspace.root,
            check=True,
            capture_output=True,
            env={**os.environ, "GIT_EDITOR": "true"},
        )
        assert main_of(home) == git(workspace.root, "rev-parse", "HEAD")
        assert (workspace.root / "README.md").read_text() == "theirs"

    def test_a_refusal_names_the_faults_and_the_way_on(self, workspace: Workspace, home: Path) -> None:
        save(workspace, "Bad", REFUSE="ERROR  models/tumor/model.yaml: owner: is missing\n")
        with pytest.raises(Refusal) as caught:
            origin.sync_user(workspace)
        assert caught.value.lines == [
            "wharf refused the push: pre-receive hook declined",
            "models/tumor/model.yaml: owner: is missing",
        ]
        assert "git push wharf HEAD:main" in caught.value.tip
