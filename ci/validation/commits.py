"""Who may change what: releases by wharf's own commits, and nothing else by them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ci import release
from ci.errors import Mistake
from ci.release import path_of
from ci.validation.repository import Commit, Repository

_PIN = re.compile(r"([a-z][a-z0-9]*)/([a-z][a-z0-9]*)@([1-9][0-9]*)")
_RELEASES = "gitops/releases/"
_MACHINE = (_RELEASES, "gitops/rendered/")


def check(repository: Repository, base: str) -> tuple[list[str], int]:
    """Judge every commit that `base` has not; return the faults and how many were judged, not counting merges.

    A merge brings releases together and changes none: the history of releases is read without merges.
    """
    commits = repository.commits(base)
    faults = [fault for commit in commits for fault in _faults(commit)]
    hint = "only `wharf promote` and `wharf rollback` change releases; merge again and keep what main has"
    faults += [
        f"commit {merge.id[:10]}: {path}: changed by a merge ({hint})"
        for merge in repository.merges(base, _RELEASES)
        for path in merge.paths
    ]
    return faults + _false_pins(repository, commits), len(commits)


def _faults(commit: Commit) -> list[str]:
    where = f"commit {commit.id[:10]}"
    released = [path for path in commit.paths if path.startswith(_RELEASES)]
    if not commit.pins:
        hint = "only `wharf promote` and `wharf rollback` change releases; take it out of the commit"
        return [f"{where}: {path}: changed without a Wharf-Release trailer ({hint})" for path in released]
    faults = [
        f"{where}: {path}: a commit that releases changes releases and rendered manifests only "
        "(put it into a commit of its own)"
        for path in commit.paths
        if not path.startswith(_MACHINE)
    ]
    named: set[str] = set()
    for pin in commit.pins:
        if found := _PIN.fullmatch(pin):
            named.add(path_of(found[1], found[2]))
        else:
            faults.append(f"{where}: Wharf-Release: '{pin}' is not <environment>/<model>@<version>")
    faults += [f"{where}: {path}: is changed, but no Wharf-Release names it" for path in released if path not in named]
    faults += [
        f"{where}: Wharf-Release names {path}, which it does not change" for path in sorted(named - set(released))
    ]
    return faults


def _false_pins(repository: Repository, commits: Sequence[Commit]) -> list[str]:
    """Compare each trailer with the release that its commit holds: the history is read from trailers."""
    claims: list[tuple[str, str, int]] = []
    for commit in commits:
        for pin in commit.pins:
            found = _PIN.fullmatch(pin)
            if found and path_of(found[1], found[2]) in commit.paths:
                claims.append((commit.id, path_of(found[1], found[2]), int(found[3])))
    faults: list[str] = []
    for (commit, path, version), text in zip(
        claims, repository.read([(commit, path) for commit, path, _ in claims]), strict=True
    ):
        if text is None:
            continue  # the commit removes the release
        try:
            held = release.parse(text, path).version
        except Mistake as error:
            faults += [f"commit {commit[:10]}: {line}" for line in error.lines]
            continue
        if held != version:
            faults.append(f"commit {commit[:10]}: Wharf-Release says version {version}, {path} holds {held}")
    return faults
