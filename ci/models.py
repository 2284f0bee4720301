"""`wharf models`: list the models, or those that a change touches; a CI job makes its matrix of it."""

from __future__ import annotations

import argparse
import json
import re

from ci.errors import Mistake
from ci.git.gitcommit import PLAIN, require_repository
from ci.shell import CommandFailed, git
from ci.workspace import Workspace

# The code that decides what a run is: its rows, split, artifact and metrics. It is part of a run's fingerprint. What
# only moves or shows a run is not in it: else each small edit would train everything again.
PIPELINE = (
    "ci/training/data.py",
    "ci/training/evaluate.py",
    "ci/training/export.py",
    "ci/gating/scoring.py",
    "models/metrics.py",
    "models/quality.py",
    "models/spec.py",
    "models/strict_yaml.py",
)
# A change here can change what every model learns or how it serves.
_SHARED = re.compile(r"(models|bentos)/[^/]+\.py|uv\.lock|" + "|".join(map(re.escape, PIPELINE)))
_OWN = re.compile(r"(?:models|bentos)/([^/]+)/.+")


def touched(workspace: Workspace, revision: str) -> list[str]:
    """Return the names of the models whose training or serving differs between `revision` and HEAD, sorted.

    All models when `revision` is 40 zeros, what a forge gives for the first push of a branch. Raises Mistake for a
    revision that is not in this clone.
    """
    require_repository(workspace.root)
    known = workspace.model_names()
    if not revision.strip("0"):
        return known
    try:
        git(workspace.root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}", env=PLAIN)
    except CommandFailed:
        raise Mistake(
            f"--changed: no commit '{revision}' in this clone", tip="in CI, check out with the whole history"
        ) from None
    listed = git(workspace.root, "diff", "--name-only", "--no-renames", "-z", revision, "HEAD", "--", env=PLAIN)
    paths = [path for path in listed.split("\0") if path]
    if any(_SHARED.fullmatch(path) for path in paths):
        return known
    own = {found.group(1) for path in paths if (found := _OWN.fullmatch(path))}
    return [name for name in known if name in own]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `wharf models`."""
    parser.add_argument("--changed", metavar="REV", help="only those that differ between this revision and HEAD")
    parser.add_argument("--json", action="store_true", help="print one JSON list on one line")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    """Print the names."""
    names = workspace.model_names() if options.changed is None else touched(workspace, options.changed)
    if options.json:
        print(json.dumps(names))
    elif names:
        print("\n".join(names))
    return 0
