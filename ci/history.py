"""`wharf history`: what ran when and who promoted it, read from the commits that touched the release files."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ci.console import table
from ci.errors import Mistake, did_you_mean
from ci.git import gitcommit, remote
from ci.release import Release, parse, path_of
from ci.shell import git
from ci.workspace import Workspace

_FIELDS = "%x1e%H%x1f%an%x1f%ae%x1f%aI%x1f%(trailers:key=Wharf-Action,valueonly,separator=%x2c)"


@dataclass(frozen=True)
class Entry:
    """One commit that changed a release file."""

    commit: str
    when: str  # ISO 8601 with the author's offset
    author: str
    email: str
    action: str  # promote, rollback, or edit for a commit without our trailer
    environment: str
    release: Release | None  # what the file held from then on; None: the release was removed


def entries(root: Path, revision: str, model: str, environment: str | None = None) -> list[Entry]:
    """Return the entries of `model` in the history of `revision`, oldest first."""
    pattern = f":(glob)gitops/releases/{environment or '*'}/{model}.yaml"
    log = git(
        root,
        *("log", "--topo-order", "--no-renames", "--name-only", f"--format={_FIELDS}", revision, "--", pattern),
        env=gitcommit.PLAIN,
    )
    touched: list[tuple[list[str], str]] = []
    for block in log.split("\x1e")[1:]:
        head, *names = [line for line in block.split("\n") if line]
        touched += [(head.split("\x1f"), name) for name in names]
    texts = gitcommit.read_all(root, [(fields[0], path) for fields, path in touched])
    found: list[Entry] = []
    for ((commit, author, email, when, action), path), text in zip(touched, texts, strict=True):
        release = None if text is None else parse(text, f"{path} at {commit[:10]}")
        found.append(Entry(commit, when, author, email, action or "edit", path.split("/")[2], release))
    return found[::-1]


def standing(past: list[Entry]) -> list[Release]:
    """Return the releases of one environment that `rollback` walks down, the current one last.

    A promotion is put on top. A rollback takes off everything above the release that it restores, so what was
    rolled back is never offered again, and rolling back twice goes back two releases.
    """
    stack: list[Release] = []
    for entry in past:
        if entry.release is None:
            continue
        if entry.action == "rollback" and entry.release in stack:
            while stack[-1] != entry.release:
                stack.pop()
        elif not stack or stack[-1] != entry.release:
            stack.append(entry.release)
    return stack


def revision(workspace: Workspace) -> str:
    """Return the commit whose history counts: the target's main branch, or HEAD where there is no remote."""
    found = remote.find(workspace)
    return remote.main_of(workspace.root, found) if found else git(workspace.root, "rev-parse", "HEAD")


def history(workspace: Workspace, name: str, environment: str | None = None) -> list[Entry]:
    """Return the entries of model `name`, oldest first; raises Mistake for a model that never had a release."""
    if not re.fullmatch(r"[a-z][a-z0-9]{0,39}", name):
        raise Mistake(f"'{name}' is not the name of a model")
    base = revision(workspace)
    known = sorted({Path(path).parent.name for path in gitcommit.files(workspace.root, base, "gitops/releases")})
    found = entries(workspace.root, base, name, environment)
    if not found and environment and environment not in known:
        settings = gitcommit.files(workspace.root, base, "gitops/environments")
        names = [Path(path).stem for path in settings]
        if environment not in names:
            raise Mistake(f"no environment '{environment}'{did_you_mean(environment, names)}")
    if not found:
        workspace.model(name)  # an unknown name gets its own message
    return found


def rows(found: list[Entry]) -> list[dict[str, object]]:
    """Return the entries as plain records, newest first, each with the version before it in its environment."""
    before: dict[str, Release | None] = {}
    records: list[dict[str, object]] = []
    for entry in found:
        previous = before.get(entry.environment)
        record: dict[str, object] = {"when": entry.when, "environment": entry.environment}
        record |= {"from": previous.version if previous else None}
        record |= {"to": entry.release.version if entry.release else None, "action": entry.action}
        record |= {"by": entry.author, "email": entry.email, "commit": entry.commit}
        record |= {"release": asdict(entry.release) if entry.release else None}
        records.append(record)
        before[entry.environment] = entry.release
    return records[::-1]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `wharf history`."""
    parser.add_argument("model", help="name of the model")
    parser.add_argument("--env", metavar="ENV", help="only this environment")
    parser.add_argument("--json", action="store_true", help="print one JSON list")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    """Print the history, newest first."""
    records = rows(history(workspace, options.model, options.env))
    if options.json:
        print(json.dumps(records, indent=2))
    elif not records:
        print(f"{options.model} was never released{f' to {options.env}' if options.env else ''}")
    else:
        shown = [
            [str(record["when"])[:19].replace("T", " "), record["environment"]]
            + [record[key] or "-" for key in ("from", "to", "action", "by")]
            + [str(record["commit"])[:10]]
            for record in records
        ]
        print(table(["WHEN", "ENVIRONMENT", "FROM", "TO", "ACTION", "BY", "COMMIT"], shown))
    return 0


def release_at(root: Path, base: str, environment: str, model: str) -> Release | None:
    """Return the release of `model` in `environment` at the commit `base`, None where there is none."""
    path = path_of(environment, model)
    text = gitcommit.read(root, base, path)
    return None if text is None else parse(text, path)
