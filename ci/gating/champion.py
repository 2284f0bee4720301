"""What is released: read from the main branch of the repository that the target follows, else from the working tree."""

from __future__ import annotations

from dataclasses import dataclass

from ci.environments import load_all
from ci.gating.evidence import Champion
from ci.git import remote
from ci.git.gitcommit import read
from ci.release import Release, load, parse, path_of
from ci.workspace import Workspace


@dataclass(frozen=True)
class Released:
    """A release and the commit it was read at; None means the working tree."""

    release: Release
    revision: str | None
    source: str  # the name of the git remote, or "working tree"


def main_revision(workspace: Workspace) -> tuple[str, str] | None:
    """Return name and newest main commit of the followed remote, None where there is none yet.

    Raises Unavailable when the remote does not answer: what runs is then unknown.
    """
    followed = remote.find(workspace)
    if followed is None or remote.MAIN not in remote.heads(workspace.root, followed):
        return None
    return followed.name, remote.main_of(workspace.root, followed)


def released(workspace: Workspace, environment: str, name: str) -> Released | None:
    """Return the release of `name` in `environment`, None where there is none."""
    return _at(workspace, main_revision(workspace), environment, name)


def champion(workspace: Workspace, name: str) -> tuple[Champion, Release] | None:
    """Return the version of `name` that is released in the most advanced environment, None before the first."""
    revision = main_revision(workspace)
    for environment in reversed(load_all(workspace.root)):
        found = _at(workspace, revision, environment.name, name)
        if found is not None:
            return Champion(environment.name, found.release.version, found.release.run), found.release
    return None


def _at(workspace: Workspace, at: tuple[str, str] | None, environment: str, name: str) -> Released | None:
    path = path_of(environment, name)
    if at is None:
        release = load(workspace.root, environment, name)
        return Released(release, None, "working tree") if release else None
    text = read(workspace.root, at[1], path)
    return Released(parse(text, f"{at[0]}: {path}"), at[1], at[0]) if text is not None else None
