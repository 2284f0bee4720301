"""Promotions that race, are killed, or run out of disk: one outcome, nothing half-done, nothing lost."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from ci.errors import Refusal, Unavailable
from ci.git import offer, remote
from ci.promote import promote
from ci.rollback import rollback
from ci.shell import git
from ci.workspace import Workspace
from tests.ci.local_target import main_of, push, released, save, set_up, standing_of
from tests.mlflow_server import ROOT
from tests.registry_double import RegistryDouble, registry_double


@pytest.fixture
def registry() -> Generator[RegistryDouble]:
    with registry_double() as double:
        yield double


@pytest.fixture
def home(workspace: Workspace, registry: RegistryDouble) -> Path:
    registry.add("tumor", 1)
    registry.add("tumor", 2)
    return set_up(workspace, registry)


def wharf(workspace: Workspace, *words: str) -> subprocess.Popen[str]:
    """Start a wharf command in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ci.cli", *words],
        cwd=workspace.root,
        # The judge stands in the workspace's `ci`; the command is to be the real one.
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture
def overtaken(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Functions to run between the making of a commit and its push, one each time: a race that always happens."""
    between: list[object] = []
    real = remote.push

    def push_later(root: Path, target: remote.Remote, *moves: remote.Push) -> list[str]:
        if between:
            first = between.pop(0)
            assert callable(first)
            first()
        return real(root, target, *moves)

    monkeypatch.setattr(offer.remote, "push", push_later)
    return between


def test_the_loser_of_a_race_for_one_release_is_told_and_nothing_is_lost(
    workspace: Workspace, home: Path, overtaken: list[object]
) -> None:
    overtaken.append(lambda: promote(workspace, "tumor", "dev", version=2))
    before = standing_of(workspace)
    with pytest.raises(Refusal) as caught:
        promote(workspace, "tumor", "dev", version=1)
    assert caught.value.lines == [
        "wharf/main moved meanwhile: dev/tumor is version 2 now; nothing was pushed: run this command again"
    ]
    winner = released(home, "dev", "tumor")
    assert winner is not None
    assert winner.version == 2
    assert standing_of(workspace) == before
    assert promote(workspace, "tumor", "dev", version=1).previous == 2  # what "run this again" does


def test_when_something_else_was_pushed_the_release_is_made_again_on_it(
    workspace: Workspace, home: Path, overtaken: list[object]
) -> None:
    def somebody_pushes() -> None:
        save(workspace, "Meanwhile", **{"README.md": "meanwhile"})
        push(workspace)

    overtaken += [somebody_pushes]
    made = promote(workspace, "tumor", "dev", version=1)
    assert main_of(home) == made.commit
    assert git(home, "show", "main:README.md") == "meanwhile"
    assert git(home, "log", "-2", "--format=%s", "main").splitlines() == ["Promote tumor version 1 to dev", "Meanwhile"]


def test_when_the_same_release_landed_meanwhile_it_is_there_already(
    workspace: Workspace, home: Path, overtaken: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def somebody_else_releases_it() -> None:
        monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
        promote(workspace, "tumor", "dev", version=1)

    overtaken.append(somebody_else_releases_it)
    made = promote(workspace, "tumor", "dev", version=1)
    assert made.summary == "dev/tumor: version 1 is already there; nothing to do"
    assert git(home, "log", "-1", "--format=%an", "main") == "Somebody Else"


def test_two_rollbacks_at_once_go_back_one_release_and_not_two(
    workspace: Workspace,
    home: Path,
    registry: RegistryDouble,
    overtaken: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def somebody_else_rolls_back() -> None:
        monkeypatch.setenv("GIT_AUTHOR_NAME", "Somebody Else")
        rollback(workspace, "tumor", "dev")

    registry.add("tumor", 3)
    for version in (1, 2, 3):
        promote(workspace, "tumor", "dev", version=version)
    overtaken.append(somebody_else_rolls_back)
    assert rollback(workspace, "tumor", "dev").summary == "dev/tumor: version 2 is already there; nothing to do"
    found = released(home, "dev", "tumor")
    assert found is not None
    assert found.version == 2


def test_a_main_that_never_stands_still_ends_in_words(
    workspace: Workspace, home: Path, overtaken: list[object]
) -> None:
    def somebody_pushes() -> None:
        git(workspace.root, "commit", "--quiet", "--allow-empty", "--message=Again")
        push(workspace)

    overtaken += [somebody_pushes] * 9
    with pytest.raises(Refusal, match="moved 5 times meanwhile; nothing was pushed"):
        promote(workspace, "tumor", "dev", version=1)


def test_two_real_processes_race(workspace: Workspace, home: Path) -> None:
    """Whichever way it goes: whoever is told 0 is in the history, whoever is told 3 is not, and main is one line."""
    start = main_of(home)
    racing = {version: wharf(workspace, "promote", "tumor", "--to", "dev", "--version", version) for version in "12"}
    ended = {version: (process.communicate(), process.returncode)[1] for version, process in racing.items()}
    assert set(ended.values()) <= {0, 3}
    assert 0 in ended.values()
    subjects = git(home, "log", "--format=%s", f"{start}..main").splitlines()
    assert sorted(subjects) == sorted(f"Promote tumor version {v} to dev" for v, code in ended.items() if code == 0)
    assert git(home, "fsck", "--strict", "--no-dangling") == ""


def test_killed_at_any_moment_and_run_again(workspace: Workspace, home: Path) -> None:
    """kill -9 at growing delays until a run gets through: main holds the whole release or nothing of it."""
    start, before = main_of(home), standing_of(workspace)
    killed = 0
    for delay in [0.05, 0.15, 0.25, 0.35, 0.45, 0.6, 0.8]:
        process = wharf(workspace, "promote", "tumor", "--to", "dev", "--version", "1")
        time.sleep(delay)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
        assert standing_of(workspace) == before
        if main_of(home) != start:
            break
        assert released(home, "dev", "tumor") is None
    assert killed >= 2
    done = wharf(workspace, "promote", "tumor", "--to", "dev", "--version", "1")
    said = done.communicate()
    assert done.returncode == 0, said
    assert git(home, "rev-list", "--count", f"{start}..main") == "1"
    assert released(home, "dev", "tumor") is not None
    assert standing_of(workspace) == before
    assert git(home, "fsck", "--strict", "--no-dangling") == ""


def test_killed_while_the_origin_judges_and_run_again(workspace: Workspace, home: Path) -> None:
    save(workspace, "A slow judge", SLOW="3")
    git(home, "fetch", "--quiet", str(workspace.root), "+main:main")
    start = main_of(home)
    process = wharf(workspace, "promote", "tumor", "--to", "dev", "--version", "1")
    deadline = time.monotonic() + 30
    while not (home / "judging").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert main_of(home) == start
    (workspace.root / "SLOW").unlink()
    save(workspace, "A quick judge")
    push(workspace)
    assert promote(workspace, "tumor", "dev", version=1).changed


def full_disk_git(tmp_path: Path, failing: str) -> Path:
    """Return a folder with a `git` that fails one subcommand as on a full disk, and is git otherwise."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text(
        f'#!/bin/sh\nfor word; do\n  if [ "$word" = {failing} ]; then\n'
        "    echo 'fatal: unable to write loose object file: No space left on device' >&2; exit 128\n  fi\n"
        f'done\nexec {shutil.which("git")} "$@"\n'
    )
    (folder / "git").chmod(0o755)
    return folder


@pytest.mark.parametrize("failing", ["hash-object", "read-tree", "update-index", "write-tree", "commit-tree"])
def test_a_disk_full_at_any_step_of_the_commit(
    workspace: Workspace, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    start, before, path = main_of(home), standing_of(workspace), os.environ["PATH"]
    monkeypatch.setenv("PATH", f"{full_disk_git(tmp_path, failing)}:{path}")
    with pytest.raises(Unavailable) as caught:
        promote(workspace, "tumor", "dev", version=1)
    assert caught.value.lines == [
        "the commit could not be written, nothing was changed: "
        "unable to write loose object file: No space left on device"
    ]
    monkeypatch.setenv("PATH", path)
    assert main_of(home) == start
    assert standing_of(workspace) == before
    assert promote(workspace, "tumor", "dev", version=1).changed


def test_a_disk_full_at_the_origin(workspace: Workspace, home: Path) -> None:
    """The origin cannot store the pushed objects: the push fails, main stays, the next one works."""
    start = main_of(home)
    git(home, "config", "receive.maxInputSize", "1k")  # git's own "too large": like a quota of the server's disk
    with pytest.raises(Unavailable) as caught:
        promote(workspace, "tumor", "dev", version=1)
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].startswith("wharf could not store the commit, nothing was changed there: ")
    assert main_of(home) == start
    git(home, "config", "--unset", "receive.maxInputSize")
    assert promote(workspace, "tumor", "dev", version=1).changed


def test_many_at_once_from_threads_all_land(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    """Two models' releases do not meet, so both land, each made again on the other's commit where needed."""
    shutil.copytree(workspace.models / "tumor", workspace.models / "lump")
    spec = workspace.models / "lump" / "model.yaml"
    spec.write_text(spec.read_text().replace("name: tumor", "name: lump"))
    save(workspace, "A second model")
    push(workspace)
    registry.add("lump", 1)
    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            promote(workspace, name, "dev", version=1)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(name,)) for name in ("tumor", "lump")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert released(home, "dev", "tumor") is not None
    assert released(home, "dev", "lump") is not None
