"""A local target for tests: a workspace, its real bare origin with the real hook, and a registry double.

The validation that the hook runs is the pushed tree's own `ci`. Most tests push a tree whose `ci` is the small
judge below: it refuses what the file REFUSE in the pushed tree says, and records how it was called.
`real=True` leaves the judge out, and the installed `ci` judges.
"""

from __future__ import annotations

import json
from pathlib import Path

from ci.git import gitcommit, remote
from ci.local import origin
from ci.release import Release, parse, path_of
from ci.shell import git
from ci.workspace import Workspace
from tests.registry_double import RegistryDouble

_JUDGE = """
import json, os, pathlib, sys, time
tree = pathlib.Path(sys.argv[sys.argv.index("--root") + 1])
repository = pathlib.Path(sys.argv[sys.argv.index("--git-dir") + 1])
call = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd(), "judge": __file__}
with (repository / "judged.jsonl").open("a") as log:
    log.write(json.dumps(call) + "\\n")
if (tree / "SLOW").exists():
    (repository / "judging").touch()
    time.sleep(float((tree / "SLOW").read_text()))
if (tree / "REFUSE").exists():
    print((tree / "REFUSE").read_text(), file=sys.stderr, end="")
    sys.exit(3)
"""


def set_up(workspace: Workspace, registry: RegistryDouble, *, real: bool = False) -> Path:
    """Make the origin of `workspace` and point it at `registry`; return the origin's path."""
    if not real:
        (workspace.root / "ci").mkdir()
        (workspace.root / "ci" / "__init__.py").touch()
        (workspace.root / "ci" / "cli.py").write_text(_JUDGE)
        save(workspace, "Judge by REFUSE")
    workspace.state.mkdir(exist_ok=True)
    (workspace.state / "platform.json").write_text(json.dumps({"mlflow": {"url": registry.url}}))
    return origin.ensure(workspace)


def save(workspace: Workspace, message: str, **texts: str) -> str:
    """Commit everything, after writing `texts` (file name: content); return the commit."""
    for name, text in texts.items():
        (workspace.root / name).write_text(text)
    git(workspace.root, "add", "--all")
    git(workspace.root, "commit", "--quiet", "--message", message)
    return git(workspace.root, "rev-parse", "HEAD")


def push(workspace: Workspace, refs: str = "HEAD:main") -> None:
    """Push as a person does."""
    git(workspace.root, "push", "--quiet", "wharf", *refs.split())


def main_of(origin_path: Path) -> str:
    """Return the newest commit of the origin's main."""
    return git(origin_path, "rev-parse", remote.MAIN)


def released(origin_path: Path, environment: str, model: str, revision: str = "main") -> Release | None:
    """Return the release that the origin has."""
    text = gitcommit.read(origin_path, revision, path_of(environment, model))
    return None if text is None else parse(text, "release")


def judged(origin_path: Path) -> list[dict[str, object]]:
    """Return how the judge was called, oldest first."""
    log = origin_path / "judged.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def standing_of(workspace: Workspace) -> dict[str, str]:
    """Return what a machine commit must never change: branch, index and files of the user."""
    root = workspace.root
    return {
        "head": git(root, "rev-parse", "HEAD"),
        "branch": git(root, "symbolic-ref", "HEAD"),
        "branches": git(root, "for-each-ref", "refs/heads"),
        "index": git(root, "ls-files", "--stage"),
        "status": git(root, "status", "--porcelain"),
    }
