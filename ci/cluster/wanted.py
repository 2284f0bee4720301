"""What git wants: the releases at the main branch that the cluster follows, and whether a commit has them already."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ci.git import gitcommit, remote
from ci.git.gitcommit import PLAIN
from ci.shell import git
from ci.workspace import Workspace

Key = tuple[str, str]  # model, environment

_VERSION = re.compile(r"^version: *([1-9][0-9]*)$", re.MULTILINE)


@dataclass(frozen=True)
class Wanted:
    """The main branch: its commit, and each release's version and rendered folder (git's tree id)."""

    repository: Path
    commit: str
    versions: dict[Key, int]
    folders: dict[Key, str]

    def behind(self, revisions: Iterable[tuple[Key, str]]) -> tuple[set[Key], set[Key]]:
        """Judge the commit beside each key: those whose rendered folder differs there from the main branch's, and
        those whose commit is no commit of this repository at all.

        In a shallow repository old commits are missing, so there the second set is empty.
        """
        asked = [(key, revision) for key, revision in revisions if revision and revision != self.commit]
        if not asked:
            return set(), set()
        lines = [f"{revision}^{{commit}}\n{revision}:{folder_of(key)}\n" for key, revision in asked]
        told = git(self.repository, "cat-file", "--batch-check", env=PLAIN, stdin="".join(lines)).splitlines()
        older: set[Key] = set()
        strange: set[Key] = set()
        for (key, _), commit, folder in zip(asked, told[::2], told[1::2], strict=True):
            if commit.endswith("missing"):
                strange.add(key)
            elif folder.split()[0] != self.folders.get(key, folder.split()[0]):
                older.add(key)
        if strange and git(self.repository, "rev-parse", "--is-shallow-repository", env=PLAIN) == "true":
            strange.clear()
        return older, strange


def folder_of(key: Key) -> str:
    """Return the folder of the rendered manifests, relative to the root."""
    return f"gitops/rendered/{key[1]}/{key[0]}"


def wanted(workspace: Workspace) -> Wanted:
    """Read the main branch that the cluster follows; raises Unavailable when its server does not answer."""
    found = remote.find(workspace)
    if found is not None and found.kind == "local":
        repository = remote.local_origin(workspace)  # everything is here: no server to ask, nothing to fetch
        commit = git(repository, "rev-parse", remote.MAIN, env=PLAIN)
    else:
        repository = workspace.root
        commit = remote.main_of(repository, found) if found else git(repository, "rev-parse", "HEAD", env=PLAIN)
    listed = git(
        repository, "ls-tree", "-r", "-t", "--full-tree", commit, "gitops/releases/", "gitops/rendered/", env=PLAIN
    )
    releases: dict[Key, str] = {}
    folders: dict[Key, str] = {}
    for line in listed.splitlines():
        (_, kind, sha), path = line.partition("\t")[0].split(), line.partition("\t")[2]
        parts = path.split("/")
        if len(parts) != 4:
            continue
        if kind == "blob" and parts[1] == "releases" and path.endswith(".yaml"):
            releases[parts[3].removesuffix(".yaml"), parts[2]] = path
        elif kind == "tree" and parts[1] == "rendered":
            folders[parts[3], parts[2]] = sha
    texts = gitcommit.read_all(repository, [(commit, path) for path in releases.values()])
    versions = {
        key: int(match.group(1))
        for key, text in zip(releases, texts, strict=True)
        if text and (match := _VERSION.search(text))
    }
    return Wanted(repository, commit, versions, folders)
