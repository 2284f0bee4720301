"""Git plumbing: read files of a revision and make a commit on top of one, without a working tree.

Nothing here touches the user's index, branch or files: a commit is built from a base revision in a temporary index
(https://git-scm.com/book/en/v2/Git-Internals-Git-Objects) and is only an object until somebody pushes it.
Killed in the middle, it leaves unreachable objects, which git removes by itself.
"""

from __future__ import annotations

import getpass
import io
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ci.errors import Mistake, Unavailable
from ci.shell import CommandFailed, git

# Messages are parsed and shown, so they come in English; a question for a password would hang an unattended run.
PLAIN = {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}


@dataclass(frozen=True)
class Identity:
    """Who is written into a commit."""

    name: str
    email: str


def require_repository(root: Path) -> None:
    """Raise Mistake when `root` is not a git repository with at least one commit."""
    try:
        git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}", env=PLAIN)
    except CommandFailed as error:
        if "not a git repository" in error.stderr:
            raise Mistake(
                f"{root} is not a git repository: releases are commits",
                tip="clone the repository with git, or run `git init && git add . && git commit -m Start`",
            ) from None
        if "dubious ownership" in error.stderr:
            raise Mistake(error.stderr.strip().splitlines()[0]) from None
        raise Mistake(f"{root} has no commit yet", tip="run `git add . && git commit -m Start`") from None


def identity(root: Path) -> Identity:
    """Return the git identity of the user of `root`; raises Mistake when none is configured."""
    try:
        line = git(root, "-c", "user.useConfigOnly=true", "var", "GIT_AUTHOR_IDENT", env=PLAIN)
    except CommandFailed:
        line = ""
    found = re.fullmatch(r"(.+) <(.+)> \d+ [+-]\d{4}", line)
    if not found:
        raise Mistake(
            "git does not know who you are, and a release names who made it",
            tip="run `git config --global user.name 'Your Name'` and `git config --global user.email you@your.domain`",
        )
    return Identity(*found.groups())


def local_identity(root: Path) -> Identity:
    """Return the git identity of the user of `root`, or the login name where git was never told one.

    For releases that stay on this machine: somebody's first `make up` must not end at a git setting.
    """
    try:
        return identity(root)
    except Mistake:
        try:
            login = getpass.getuser()
        except (KeyError, OSError):  # a user without a name, as in some containers
            login = "wharf"
        return Identity(login, f"{login}@localhost")


def read(root: Path, revision: str, path: str) -> str | None:
    """Return the text of `path` at `revision`, None where there is no such file."""
    return read_all(root, [(revision, path)])[0]


def read_all(root: Path, wanted: Iterable[tuple[str, str]]) -> list[str | None]:
    """Return the texts of many `(revision, path)` by one git process, None for each that does not exist."""
    names = [f"{revision}:{path}" for revision, path in wanted]
    done = subprocess.run(
        ["git", "cat-file", "--batch"],
        cwd=root,
        input="".join(f"{name}\n" for name in names).encode(),
        env={**os.environ, **PLAIN},
        capture_output=True,
        check=False,
    )
    if done.returncode != 0:
        raise CommandFailed(["git", "cat-file", "--batch"], done.returncode, done.stderr.decode(errors="replace"))
    texts: list[str | None] = []
    answer = io.BytesIO(done.stdout)
    for _ in names:
        kind, size = answer.readline().rstrip(b"\n").rsplit(b" ", 2)[-2:]
        if not size.isdigit():  # `<name> missing`
            texts.append(None)
            continue
        content = answer.read(int(size) + 1)[:-1]  # each content ends with a line break of its own
        texts.append(content.decode() if kind == b"blob" else None)
    return texts


def files(root: Path, revision: str, folder: str) -> list[str]:
    """Return the paths of all files below `folder` at `revision`, sorted; none when there is no such folder."""
    listed = git(root, "ls-tree", "-r", "-z", "--name-only", "--full-tree", revision, "--", f"{folder}/", env=PLAIN)
    return sorted(path for path in listed.split("\0") if path)


def extract(root: Path, revision: str, paths: Iterable[str], into: Path) -> None:
    """Write those of `paths` that exist at `revision` into the directory `into`, by their full paths."""
    wanted = list(paths)
    for path, text in zip(wanted, read_all(root, [(revision, path) for path in wanted]), strict=True):
        if text is not None:
            (into / path).parent.mkdir(parents=True, exist_ok=True)
            (into / path).write_text(text, encoding="utf-8")


def commit(root: Path, base: str, changes: Mapping[str, str | None], message: str, who: Identity) -> str | None:
    """Return a new commit on top of `base` with `changes` (path: text, or None to remove it).

    Returns None when the changes change nothing. No ref moves. Raises Unavailable, in one line, when the objects
    cannot be written (disk full, no permission).
    """
    try:
        with tempfile.TemporaryDirectory(prefix="wharf-commit-") as folder:
            tree = _tree(root, base, changes, Path(folder))
        if tree == git(root, "rev-parse", f"{base}^{{tree}}", env=PLAIN):
            return None
        env = PLAIN | {f"GIT_{role}_NAME": who.name for role in ("AUTHOR", "COMMITTER")}
        env |= {f"GIT_{role}_EMAIL": who.email for role in ("AUTHOR", "COMMITTER")}
        return git(root, "commit-tree", tree, "-p", base, "-F", "-", env=env, stdin=message)
    except (OSError, CommandFailed) as error:
        raise Unavailable(
            f"the commit could not be written, nothing was changed: {last_words(error)}",
            tip="make room or mend the permissions of .git, then run the same command again",
        ) from None


def _tree(root: Path, base: str, changes: Mapping[str, str | None], scratch: Path) -> str:
    env = PLAIN | {"GIT_INDEX_FILE": str(scratch / "index")}
    kept = [(path, text) for path, text in changes.items() if text is not None]
    for number, (_, text) in enumerate(kept):
        (scratch / str(number)).write_bytes(text.encode())
    names = "".join(f"{scratch / str(number)}\n" for number in range(len(kept)))
    blobs = git(root, "hash-object", "-w", "--no-filters", "--stdin-paths", env=env, stdin=names).split()
    entries = [f"100644 {blob}\t{path}\0" for (path, _), blob in zip(kept, blobs, strict=True)]
    entries += [f"0 {'0' * 40}\t{path}\0" for path, text in changes.items() if text is None]
    git(root, "read-tree", base, env=env)
    git(root, "update-index", "-z", "--index-info", env=env, stdin="".join(entries))
    return git(root, "write-tree", env=env)


def last_words(error: OSError | CommandFailed) -> str:
    """Return the cause of a failed program or system call in one line."""
    if isinstance(error, OSError):
        return str(error.strerror or error)
    lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
    # git names the cause ("No space left on device") before what it therefore gave up.
    causes = [line.removeprefix("error: ").removeprefix("fatal: ") for line in lines]
    return causes[0] if causes else error.lines[0]
