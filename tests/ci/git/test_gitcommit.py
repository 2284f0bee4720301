"""Commits by plumbing: what is in them, and that nothing of the user is touched."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ci.errors import Mistake
from ci.git import gitcommit
from ci.git.gitcommit import Identity
from ci.shell import git
from tests.mlflow_server import ROOT

WHO = Identity("Ada", "ada@localhost")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "config", "user.name", "Tests")
    git(root, "config", "user.email", "tests@localhost")
    (root / "kept.txt").write_text("kept\n")
    (root / "folder").mkdir()
    (root / "folder" / "old.txt").write_text("old\n")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=Start")
    return root


def test_a_commit_adds_changes_and_removes(repository: Path) -> None:
    changes = {"folder/old.txt": None, "folder/new.txt": "new ü\n", "kept.txt": "changed\n"}
    made = gitcommit.commit(repository, "HEAD", changes, "Subject\n\nWharf-Action: promote\n", WHO)
    assert made is not None
    assert gitcommit.files(repository, made, "folder") == ["folder/new.txt"]
    assert gitcommit.read(repository, made, "folder/new.txt") == "new ü\n"
    assert gitcommit.read(repository, made, "kept.txt") == "changed\n"
    assert git(repository, "rev-parse", f"{made}^") == git(repository, "rev-parse", "HEAD")
    assert git(repository, "log", "-1", "--format=%an|%ae|%cn|%ce", made) == "Ada|ada@localhost|Ada|ada@localhost"
    assert git(repository, "log", "-1", "--format=%(trailers:key=Wharf-Action,valueonly)", made).strip() == "promote"


def test_the_users_index_branch_and_files_stay(repository: Path) -> None:
    (repository / "kept.txt").write_text("staged\n")
    git(repository, "add", "kept.txt")
    (repository / "kept.txt").write_text("edited\n")
    before = git(repository, "status", "--porcelain=v2", "--branch")
    gitcommit.commit(repository, "HEAD", {"kept.txt": "machine\n"}, "m", WHO)
    assert git(repository, "status", "--porcelain=v2", "--branch") == before
    assert (repository / "kept.txt").read_text() == "edited\n"


def test_no_change_is_no_commit(repository: Path) -> None:
    assert gitcommit.commit(repository, "HEAD", {"kept.txt": "kept\n", "absent.txt": None}, "m", WHO) is None


def test_text_is_stored_as_it_is_whatever_git_would_convert(repository: Path) -> None:
    git(repository, "config", "core.autocrlf", "true")
    (repository / ".git" / "info" / "attributes").write_text("* text eol=crlf ident\n")
    made = gitcommit.commit(repository, "HEAD", {"a.yaml": "x: 1\r\ny: $Id$\n"}, "m", WHO)
    assert made is not None
    assert gitcommit.read(repository, made, "a.yaml") == "x: 1\r\ny: $Id$\n"


def test_reading_many_files_keeps_their_order(repository: Path) -> None:
    wanted = [("HEAD", "folder/old.txt"), ("HEAD", "absent"), ("HEAD", "folder"), ("HEAD", "kept.txt")]
    assert gitcommit.read_all(repository, wanted) == ["old\n", None, None, "kept\n"]


def test_extract_writes_what_exists(repository: Path, tmp_path: Path) -> None:
    gitcommit.extract(repository, "HEAD", ["folder/old.txt", "absent"], tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").rglob("*.txt")] == ["old.txt"]


def test_nobody_configured_is_a_mistake_with_the_commands(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    git(repository, "config", "--unset", "user.name")
    git(repository, "config", "--unset", "user.email")
    with pytest.raises(Mistake, match="git does not know who you are") as caught:
        gitcommit.identity(repository)
    assert "git config --global user.name" in caught.value.tip
    monkeypatch.setenv("LOGNAME", "bo")
    assert gitcommit.local_identity(repository) == Identity("bo", "bo@localhost")  # on this machine that is enough


def test_the_identity_of_the_environment_counts(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_AUTHOR_NAME", "Bo Robot")
    monkeypatch.setenv("GIT_AUTHOR_EMAIL", "bo@localhost")
    assert gitcommit.identity(repository) == Identity("Bo Robot", "bo@localhost")


@pytest.mark.parametrize(("prepare", "message"), [(False, "is not a git repository"), (True, "has no commit yet")])
def test_no_repository_or_no_commit(tmp_path: Path, prepare: bool, message: str) -> None:
    if prepare:
        git(tmp_path, "init", "--quiet")
    with pytest.raises(Mistake, match=message):
        gitcommit.require_repository(tmp_path)


_ON_A_TINY_DISK = """
import resource, signal, sys
from pathlib import Path
from ci.git import gitcommit
from ci.errors import Unavailable

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write fails as on a full disk, instead of a signal
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    gitcommit.commit(Path(sys.argv[1]), "HEAD", {"file": "x" * int(sys.argv[2])}, "m", gitcommit.Identity("A", "a@b"))
except Unavailable as error:
    print(*error.lines, sep="\\n")
"""


@pytest.mark.parametrize(
    ("size", "cause"),
    [(100_000, "File too large"), (10, "`git read-tree HEAD` ended with -25")],  # our own write; one of git
)
def test_a_full_disk_is_one_line_and_moves_nothing(repository: Path, size: int, cause: str) -> None:
    for number in range(100):  # an index above the limit
        (repository / f"file-{number}.txt").touch()
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message=Many")
    before = git(repository, "for-each-ref"), git(repository, "status", "--porcelain=v2", "--branch")
    command = [sys.executable, "-c", _ON_A_TINY_DISK, str(repository), str(size)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == f"the commit could not be written, nothing was changed: {cause}\n", done.stderr
    assert (git(repository, "for-each-ref"), git(repository, "status", "--porcelain=v2", "--branch")) == before
    assert git(repository, "fsck", "--strict", "--no-dangling") == ""
    assert not list((repository / ".git").glob("**/*.lock"))
