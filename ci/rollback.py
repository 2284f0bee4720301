"""`wharf rollback MODEL --env ENV`: restore the release before the current one, as a commit.

The release comes from git, byte for byte, and is rendered afresh; nothing is asked of the registry, so a rollback
works while MLflow is down as far as the target's check does. What was rolled back is skipped from then on: a second
rollback goes back one further, never forth to the bad version.
"""

from __future__ import annotations

import argparse

from ci import history
from ci.errors import Mistake
from ci.git.offer import Base, Draft, offer
from ci.promote import Promotion, outcome, show, version_number
from ci.release import Release
from ci.workspace import Workspace


def rollback(
    workspace: Workspace, name: str, environment: str, to_version: int | None = None, dry_run: bool = False
) -> Promotion:
    """Restore the previous release of `name` in `environment`, or the newest one of `to_version`.

    Raises Mistake when there is nothing to go back to, Refusal when the target's check says no.
    """

    def draft_on(base: Base) -> Draft:
        base.environment(environment)
        past = history.entries(workspace.root, base.commit, name, environment)
        current = history.release_at(workspace.root, base.commit, environment, name)
        if current is None:
            raise Mistake(f"nothing of '{name}' is released in {environment}: there is nothing to roll back")
        if to_version is None:
            restored = _previous(past, name, environment)
        else:
            restored = _of_version(past, name, environment, to_version)
        return Draft(restored, current, "rollback")

    return outcome(offer(workspace, name, draft_on, dry_run=dry_run))


def _previous(past: list[history.Entry], name: str, environment: str) -> Release:
    stack = history.standing(past)
    if len(stack) < 2:
        raise Mistake(
            f"version {stack[-1].version} is the first release of '{name}' in {environment}"
            + (", or all before it were rolled back" if len(past) > 1 else ""),
            tip=f"`wharf history {name} --env {environment}` lists what ran; `--to-version N` picks one",
        )
    return stack[-2]


def _of_version(past: list[history.Entry], name: str, environment: str, version: int) -> Release:
    had = [entry.release for entry in past if entry.release is not None]
    chosen = [release for release in had if release.version == version]
    if not chosen:
        versions = ", ".join(str(number) for number in sorted({release.version for release in had}))
        raise Mistake(
            f"version {version} of '{name}' never ran in {environment}; these did: {versions}",
            tip=f"`wharf promote {name} --to {environment} --version {version}` releases a new one",
        )
    return chosen[-1]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `wharf rollback`."""
    parser.add_argument("model", help="name of the model")
    parser.add_argument("--env", required=True, metavar="ENV", help="environment to roll back")
    parser.add_argument("--to-version", type=version_number, metavar="N", help="a version that ran there before")
    parser.add_argument("--dry-run", action="store_true", help="print the commit's diff and change nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    """Roll back and print the outcome."""
    return show(rollback(workspace, options.model, options.env, options.to_version, options.dry_run), options.json)
