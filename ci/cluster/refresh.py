"""Tell Argo CD of a push, so that it reaches the cluster in seconds and not at the next poll.

Only what the push touches is told: an Application for a change in its folder, an ApplicationSet for a folder that
appeared or went, the root application for projects and application sets. Run as
`python -m ci.cluster.refresh ROOT OLD NEW` by the hook of the local origin; it never fails a push.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ci.cluster.kube import Kube, Rejected
from ci.errors import WharfError
from ci.git.gitcommit import PLAIN
from ci.shell import CommandFailed, git
from ci.workspace import Workspace

_ROOT_FOLDERS = ("gitops/projects/", "gitops/appsets/")
_RENDERED = "gitops/rendered/"
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


@dataclass
class Touched:
    """What a push is about."""

    applications: set[str] = field(default_factory=set[str])
    sets: set[str] = field(default_factory=set[str])  # by environment
    root: bool = False

    def __bool__(self) -> bool:
        return bool(self.applications or self.sets or self.root)

    def __str__(self) -> str:
        names = [*sorted(self.applications), *(f"the releases of {name}" for name in sorted(self.sets))]
        names += ["projects and application sets"] * self.root
        more = f" and {len(names) - 4} more" if len(names) > 4 else ""
        return ", ".join(names[:4]) + more


def touched(repository: Path, old: str, new: str) -> Touched:
    """Return what differs between the commits `old` (zeros: there was none) and `new`; raises CommandFailed."""
    base = old if old.strip("0") else _EMPTY_TREE
    # One line a file: `:modes shas LETTER<tab>path`; a folder appears or goes with all its files.
    listed = git(
        repository, "diff-tree", "-r", "--no-renames", "--name-status", base, new, "--", "gitops/", env=PLAIN
    ).splitlines()
    found = Touched()
    folders: dict[str, set[str]] = {}
    for line in listed:
        letter, path = line.split("\t", 1)
        if path.startswith(_ROOT_FOLDERS):
            found.root = True
        elif path.startswith(_RENDERED) and path.count("/") > 3:
            folders.setdefault("/".join(path.split("/")[2:4]), set()).add(letter)
    whole = _exist(repository, [(commit, folder) for folder in folders for commit in (base, new)])
    for folder in folders:
        environment, model = folder.split("/")
        if (base, folder) in whole and (new, folder) in whole:
            found.applications.add(f"{model}-{environment}")
        else:
            found.sets.add(environment)
    return found


def _exist(repository: Path, asked: list[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those (commit, folder below gitops/rendered) that exist."""
    if not asked:
        return set()
    names = "".join(f"{commit}:{_RENDERED}{folder}\n" for commit, folder in asked)
    told = git(repository, "cat-file", "--batch-check", env=PLAIN, stdin=names).splitlines()
    return {each for each, line in zip(asked, told, strict=True) if not line.endswith("missing")}


def refresh(kube: Kube, namespace: str, what: Touched) -> None:
    """Ask Argo CD to look at what was touched now; what it does not know is left out. Raises WharfError."""
    from ci.cluster.argocd import APPLICATION, APPLICATION_SET, ROOT

    names = [*sorted(what.applications), *([ROOT] if what.root else [])]
    calls = [(APPLICATION, name, {"argocd.argoproj.io/refresh": "normal"}) for name in names]
    calls += [
        (APPLICATION_SET, name, {"argocd.argoproj.io/application-set-refresh": "true"}) for name in sorted(what.sets)
    ]

    def annotate(call: tuple[str, str, dict[str, str]]) -> None:
        kind, name, annotations = call
        try:
            kube.patch(kind, name, namespace, {"metadata": {"annotations": annotations}})
        except Rejected as error:
            if error.status != 404:
                raise

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(annotate, calls))


def after_push(workspace: Workspace, repository: Path, old: str, new: str) -> str:
    """Tell the cluster of this workspace of a push that moved main from `old` to `new`; return what to tell the user.

    The push has happened, whatever becomes of this: a cluster that cannot be told is a line, not an error.
    """
    from ci.cluster import access, argocd

    try:
        found = access.load(workspace)
        if found is None:
            return ""
        what = touched(repository, old, new)
        if not what:
            return ""
        refresh(argocd.client(found), argocd.namespace_of(workspace), what)
    except CommandFailed as error:
        return f"Argo CD was not told of this push and will see it at its next poll: {error.lines[-1]}"
    except WharfError as error:
        return f"Argo CD was not told of this push and will see it at its next poll: {error.lines[0]}"
    return f"Argo CD was told: {what}"


def main(arguments: Iterable[str]) -> int:
    root, old, new = arguments
    workspace = Workspace(Path(root))
    if line := after_push(workspace, workspace.state / "origin.git", old, new):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
