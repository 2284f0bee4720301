"""The order of environments: nothing is in prod that was not in staging."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from ci import release
from ci.environments import Environment
from ci.errors import Mistake
from ci.release import Release, path_of
from ci.validation.repository import Repository


def check(
    repository: Repository, environments: Mapping[str, Environment], releases: Sequence[Release], base: str = ""
) -> list[str]:
    """Refuse a release that the environment before its own does not have and never had.

    All of the pin must be the same, image and evidence included. Of a change since `base` what counts is the release
    at `base`, or any that the file ever was in its history: what comes with the change itself was never deployed, so
    one change cannot take a version through two environments. Without `base` it is the tree and its history.
    """
    waiting: list[tuple[Release, str]] = []
    for pin in releases:
        before = environments[pin.environment].after if pin.environment in environments else None
        if before is not None:
            waiting.append((pin, before))
    if base:
        # The history of `base` holds what its tree holds.
        past = repository.past(base, _paths(waiting))
    else:
        waiting = [
            (pin, before)
            for pin, before in waiting
            if _current(repository, before, pin.model) != replace(pin, environment=before)
        ]
        past = repository.past(repository.new, _paths(waiting))
    return [
        fault for pin, before in waiting if (fault := _fault(repository, pin, before, past[path_of(before, pin.model)]))
    ]


def _paths(waiting: Iterable[tuple[Release, str]]) -> list[str]:
    return [path_of(before, pin.model) for pin, before in waiting]


def _current(repository: Repository, environment: str, model: str) -> Release | None:
    try:
        return release.load(repository.root, environment, model)
    except (Mistake, UnicodeDecodeError):
        return None  # broken: reported where releases are read


def _fault(repository: Repository, pin: Release, before: str, past: Sequence[Release]) -> str:
    if replace(pin, environment=before) in past:
        return ""
    where = path_of(pin.environment, pin.model)
    if repository.shallow:
        hint = "this clone has only a part of the history: run `git fetch --unshallow`, in CI set fetch-depth: 0"
        return f"{where}: whether version {pin.version} was in {before} cannot be told ({hint})"
    same = [old for old in past if old.version == pin.version]
    if same:
        other = [
            name
            for name in ("run", "bento", "image", "artifact", "evidence", "data", "commit")
            if getattr(same[-1], name) != getattr(pin, name)
        ]
        return f"{where}: version {pin.version} was in {before} with another {' and '.join(other)} (promote it again)"
    hint = f"`wharf promote {pin.model} --to {before} --version {pin.version}` first"
    return f"{where}: version {pin.version} was never in {before}, and {pin.environment} comes after it ({hint})"
