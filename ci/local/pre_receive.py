"""The local origin's server-side hook: what a pull-request check is elsewhere.

A copy of this file stands in `.wharf/origin.git/hooks/` and is run by git with the lines `old new ref` on standard
input before any ref moves; a code other than 0 refuses the whole push, and what it prints reaches the pusher as
`remote: …` lines. The pushed commit is checked out into a folder that stays from push to push, so that only what
changed is written, and the pushed code judges itself there: `python -m ci.cli validate`, as on a pull request.

It must work whatever state the user's checkout is in, so it imports nothing but the standard library.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

MAIN = "refs/heads/main"
PROPOSALS = ("refs/heads/promote/", "refs/heads/rollback/")


def git(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Run git on this repository and return what it says."""
    done = subprocess.run(["git", *arguments], env=env, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def is_ancestor(old: str, new: str) -> bool:
    """Tell whether `new` holds everything of `old`."""
    return subprocess.run(["git", "merge-base", "--is-ancestor", old, new], check=False).returncode == 0


def fault(old: str, new: str, ref: str) -> str | None:
    """Return why this ref may not move so, None when only its content is to be judged."""
    if ref == MAIN:
        if not new.strip("0"):
            return "main cannot be deleted: it is what runs"
        if old.strip("0") and not is_ancestor(old, new):
            return "main only moves forward: `git pull --no-rebase wharf main` first, then push again"
    elif not ref.startswith(PROPOSALS):
        return f"{ref} is not taken: this origin has main and, for proposals, promote/*"
    return None


def tree_of(repository: Path, commit: str) -> Path:
    """Check `commit` out into the folder that stays from push to push and return that folder."""
    home = repository / "wharf"
    tree, index, unfinished = home / "tree", home / "index", home / "unfinished"
    if unfinished.exists():  # a checkout was killed: its leftovers must not be judged with the next push
        shutil.rmtree(tree, ignore_errors=True)
        index.unlink(missing_ok=True)
    Path(f"{index}.lock").unlink(missing_ok=True)
    tree.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    env = {**os.environ, "GIT_DIR": str(repository), "GIT_WORK_TREE": str(tree), "GIT_INDEX_FILE": str(index)}
    git("read-tree", "--reset", "-u", commit, env=env)
    unfinished.unlink()
    return tree


def settings(repository: Path) -> dict[str, str]:
    """Return the environment of the validation: absolute git paths, the registry, nothing of the pusher's Python."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    for name in ("GIT_INDEX_FILE", "GIT_WORK_TREE", "GIT_PREFIX"):
        env.pop(name, None)
    env["GIT_DIR"] = str(repository)
    for name in ("GIT_OBJECT_DIRECTORY", "GIT_QUARANTINE_PATH"):  # the pushed objects, not yet in the repository
        if name in env:
            env[name] = str(Path(env[name]).absolute())
    env["PYTHONPYCACHEPREFIX"] = str(repository / "wharf" / "pycache")
    if not env.get("MLFLOW_TRACKING_URI"):
        try:
            platform = json.loads((repository.parent / "platform.json").read_text())
            env["MLFLOW_TRACKING_URI"] = platform["mlflow"]["url"]
        except (OSError, ValueError, KeyError, TypeError):
            env.pop("MLFLOW_TRACKING_URI", None)  # validate says what it needs the registry for
    return env


def judge(repository: Path, old: str, new: str) -> int:
    """Run the validation of the commit `new` by its own code; return its exit code."""
    tree = tree_of(repository, new)
    options = ["--root", str(tree), "--git-dir", str(repository), "--old", old, "--new", new]
    command = [sys.executable, "-m", "ci.cli", "validate", *options]
    env = {**settings(repository), "PYTHONPATH": str(tree)}
    return subprocess.run(command, cwd=tree, env=env, stdout=sys.stderr, check=False).returncode


@contextmanager
def alone(repository: Path) -> Generator[None]:
    """Wait until no other push is being judged: they share one folder."""
    (repository / "wharf").mkdir(exist_ok=True)
    with (repository / "wharf" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Judge the push on standard input."""
    repository = Path(os.environ.get("GIT_DIR", ".")).resolve()
    updates = [line.split() for line in sys.stdin.read().splitlines()]
    faults = [why for old, new, ref in updates if (why := fault(old, new, ref))]
    for line in faults:
        print(f"ERROR  {line}", file=sys.stderr)
    if faults:
        return 1
    with alone(repository):
        for _, new, _ in updates:
            if new.strip("0"):
                # What it would change when it is merged: for a proposal, too, against where it left main.
                code = judge(repository, git("merge-base", MAIN, new), new)
                if code != 0:
                    return code
    return 0


def cause(error: OSError | subprocess.CalledProcessError) -> str:
    """Say in one line why the push could not be judged."""
    if isinstance(error, OSError):
        return str(error)
    said = str(error.stderr).strip().splitlines() or [f"code {error.returncode}"]
    free = shutil.disk_usage(Path("wharf" if Path("wharf").is_dir() else ".")).free
    more = " (the disk is full)" if free < 1_000_000 else ""
    return f"git {error.cmd[1]}: {said[0]}{more}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"ERROR  the push could not be checked, so it is refused: {cause(error)}", file=sys.stderr)
        sys.exit(1)
