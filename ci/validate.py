"""`wharf validate`: what the pull-request check and the origin's server-side hook both run.

The rules are in `ci/validation/`, a module a family. A check that cannot run (the registry does not answer, a kind has
no schema, the history is cut off) is a failed check.

In a working tree: `wharf validate`, or `wharf validate --changed REV` for what differs from REV. In a hook the pushed
tree was checked out without a `.git`: `--root TREE --git-dir REPOSITORY --old OLD --new NEW`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from ci.console import Step, step
from ci.environments import Environment, load_all
from ci.errors import Mistake, Refusal
from ci.release import Release
from ci.validation import bootstrap, code, commits, objects, order, secrets, versions
from ci.validation.releases import Findings, check_models, stray_files
from ci.validation.repository import Repository
from ci.validation.scope import Scope, full, narrow, touches_code
from ci.workspace import Workspace

_NOTHING = "0" * 40  # what git calls the commit before the first
_SHOWN = 100
# Below this many files one process is faster than starting several.
_PARALLEL_FROM = 2000

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass
class Report:
    """The faults, and how much was checked to find them."""

    faults: list[str]
    models: int = 0
    environments: int = 0
    releases: int = 0
    manifests: int = 0
    files: int = 0
    commits: int = 0
    seconds: float = 0.0
    base: str = field(default="", kw_only=True)  # the commit that was compared with; empty: everything was checked

    def summary(self) -> str:
        counts = ("models", "environments", "releases", "manifests", "files", "commits")
        parts = [f"{getattr(self, name)} {name}" for name in counts]
        since = f" that changed since {self.base[:10]}" if self.base else ""
        return f"checked {', '.join(parts)}{since} in {self.seconds:.1f}s"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--changed", metavar="REV", help="check only what differs from this revision")
    parser.add_argument("--root", type=Path, help="check the tree in this folder (default: this repository)")
    parser.add_argument("--git-dir", type=Path, help="the repository of a tree that has no .git of its own")
    parser.add_argument("--old", metavar="COMMIT", help="in a hook: what the branch was; 40 zeros: nothing")
    parser.add_argument("--new", metavar="COMMIT", help="in a hook: the commit that the tree was checked out from")
    parser.add_argument("--json", action="store_true", help="print the faults and counts as one JSON document")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    root = (options.root or workspace.root).resolve()
    # In a hook the lines go to whoever pushes, and only the faults are of interest there.
    with nullcontext(Step()) if options.git_dir else step("validate") as progress:
        report = check(
            root,
            workspace=workspace,
            git_dir=options.git_dir.resolve() if options.git_dir else None,
            old=options.old,
            new=options.new,
            changed=options.changed,
        )
        count = len(report.faults)
        progress.note = f"{count} fault{'' if count == 1 else 's'}" if count else "no faults"
        if report.faults and not options.json:
            more = [f"… and {count - _SHOWN} more (--json shows all)"] if count > _SHOWN else []
            raise Refusal([*report.faults[:_SHOWN], *more], tip=report.summary())
    print(json.dumps({"passed": not report.faults, **asdict(report)}, indent=2) if options.json else report.summary())
    return Refusal.exit_code if report.faults else 0


def validate(
    root: Path,
    *,
    workspace: Workspace | None = None,
    git_dir: Path | None = None,
    old: str | None = None,
    new: str | None = None,
    changed: str | None = None,
) -> list[str]:
    """Return the faults of the tree at `root`, each `path: what is wrong (next step)`; see `check`."""
    return check(root, workspace=workspace, git_dir=git_dir, old=old, new=new, changed=changed).faults


def check(
    root: Path,
    *,
    workspace: Workspace | None = None,
    git_dir: Path | None = None,
    old: str | None = None,
    new: str | None = None,
    changed: str | None = None,
) -> Report:
    """Check the tree at `root` and return the report.

    `workspace`: whose MLflow is asked (default: the tree's own). `git_dir`, `old`, `new`: of a hook, where only what
    the push changes is checked; `old` of 40 zeros or None checks everything. `changed`: the revision that a working
    tree is compared with. Raises Mistake when a revision does not exist or the options do not go together.
    """
    begun = time.monotonic()
    repository = _repository(root, git_dir, new)
    revision = changed or (old if old and old != _NOTHING else None)
    base = repository.resolve(revision) if revision else ""
    scope = _scope(repository, base)
    report = Report([f"{path}: is a symbolic link (keep the file itself here)" for path in _links(root, scope.files)])
    report.base = base
    if not report.faults:
        _check(repository, workspace or Workspace(root), base, scope, report)
    report.faults = list(dict.fromkeys(report.faults))
    report.seconds = round(time.monotonic() - begun, 2)
    return report


def _repository(root: Path, git_dir: Path | None, new: str | None) -> Repository:
    if (git_dir is None) != (new is None):
        raise Mistake("--git-dir and --new go together: the repository, and the commit that --root holds")
    repository = Repository(root, git_dir, new or "HEAD")
    if new:
        repository.resolve(new)
    return repository


def _scope(repository: Repository, base: str) -> Scope:
    if not base:
        return full(repository.root, repository.files())
    paths = repository.changed(base)
    return narrow(repository.root, paths, repository.files() if touches_code(paths) else None)


def _links(root: Path, files: Sequence[str]) -> list[str]:
    """Return the symbolic links: what is read here or put into a bento could be any file of this machine."""
    return [path for path in files if (root / path).is_symlink()]


def _check(repository: Repository, workspace: Workspace, base: str, scope: Scope, report: Report) -> None:
    root = repository.root
    environments: dict[str, Environment] | None = None
    try:
        environments = {environment.name: environment for environment in load_all(root)}
        report.environments = len(environments)
    except Mistake as error:
        report.faults += error.lines
    models = sorted(scope.models.items())
    with ExitStack() as stack:
        # The processes start before the registry's threads do: a fork with threads in it is unsafe.
        jobs = _Jobs(stack, parallel=len(scope.files) + len(models) > _PARALLEL_FROM)
        found = jobs.start(check_models, [(root, environments, part) for part in _parts(models, 40)])
        scanned = jobs.start(secrets.check_files, [(root, part) for part in _parts(scope.files, 1000)])
        total = Findings()
        for part in found():
            total.add(part)
        changed = [pin for pin in total.releases if (pin.environment, pin.model) in scope.pins]
        report.faults += total.faults
        report.faults += stray_files(scope.files)
        report.faults += code.check_files(root, scope.files)
        written, count = objects.check_files(root, scope.files)
        report.faults += written
        if scope.bootstrap:
            judged, more = bootstrap.check(root, environments)
            report.faults += judged
            count += more
        report.faults += versions.check(workspace, repository, base or repository.new, changed, deep=bool(base))
        report.faults += _order(repository, environments, scope, total.releases, base)
        report.faults += [fault for part in scanned() for fault in part]
    if base:
        judged, report.commits = commits.check(repository, base)
        report.faults += judged
    report.models, report.releases, report.files = total.specs, len(total.releases), len(scope.files)
    report.manifests = total.manifests + count


def _order(
    repository: Repository,
    environments: dict[str, Environment] | None,
    scope: Scope,
    releases: Sequence[Release],
    base: str,
) -> list[str]:
    if environments is None:
        return []
    pins = [pin for pin in releases if (pin.environment, pin.model) in scope.order]
    return order.check(repository, environments, pins, base)


def _parts(items: Sequence[_Item], size: int) -> list[Sequence[_Item]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


class _Jobs:
    """Runs pure functions on parts of the work: in this process, or in one process for each processor."""

    def __init__(self, stack: ExitStack, parallel: bool) -> None:
        self._pool: ProcessPoolExecutor | None = None
        if parallel and (os.cpu_count() or 1) > 1:
            # Fork where it is safe and quick; elsewhere each process imports what it needs anew.
            context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
            self._pool = stack.enter_context(ProcessPoolExecutor(os.cpu_count(), mp_context=context))

    def start(
        self, function: Callable[..., _Result], parts: Sequence[tuple[object, ...]]
    ) -> Callable[[], list[_Result]]:
        """Start `function` on each of `parts`; what is returned waits for the results, in order."""
        if self._pool is None:
            return lambda: [function(*part) for part in parts]
        futures: list[Future[_Result]] = [self._pool.submit(function, *part) for part in parts]
        return lambda: [future.result() for future in futures]
