"""What git knows of the tree that is checked: its files, what changed, what a release was before."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ci import release
from ci.errors import Mistake
from ci.git import gitcommit
from ci.release import Release
from ci.shell import CommandFailed, git


@dataclass(frozen=True)
class Commit:
    """One commit of the pushed or proposed range."""

    id: str
    pins: list[str]  # values of its Wharf-Release trailers
    paths: list[str]


@dataclass(frozen=True)
class Merge:
    """A merge of the pushed or proposed range, and what it changes beyond what it brings together."""

    id: str
    paths: list[str]


@dataclass(frozen=True)
class Repository:
    """A tree on disk and the git repository that it belongs to.

    In a working tree `git_dir` is None and `new` is HEAD. In a server-side hook the tree was checked out from the
    pushed commit `new` and has no `.git` of its own; `git_dir` is the repository that receives the push.
    """

    root: Path
    git_dir: Path | None = None
    new: str = "HEAD"

    def _git(self, *words: str) -> str:
        return git(self.git_dir or self.root, "-c", "core.quotePath=false", *words, env=gitcommit.PLAIN)

    @cached_property
    def there(self) -> bool:
        """Whether there is a git repository with the commit `new`."""
        try:
            self._git("rev-parse", "--verify", "--quiet", f"{self.new}^{{commit}}")
        except CommandFailed:
            return False
        return True

    @cached_property
    def shallow(self) -> bool:
        return self.there and self._git("rev-parse", "--is-shallow-repository") == "true"

    def resolve(self, revision: str) -> str:
        """Return the commit id of `revision`; raises Mistake when there is none."""
        try:
            return self._git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
        except CommandFailed:
            tip = "name a branch, tag or commit that this clone has; CI needs the whole history (fetch-depth: 0)"
            raise Mistake(f"no revision '{revision}' to compare with in this repository", tip=tip) from None

    def files(self) -> list[str]:
        """Return all files of the tree, relative to its root: in a working tree those that git does not ignore."""
        if self.git_dir is None and self.there:
            listed = self._git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
            return sorted(path for path in listed.split("\0") if path and os.path.lexists(self.root / path))
        found: list[str] = []
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if name not in {".git", ".wharf", ".venv"}]
            here = Path(folder).relative_to(self.root)
            links = [name for name in folders if (Path(folder) / name).is_symlink()]
            found += [str(here / name) for name in [*names, *links]]
        return sorted(found)

    def changed(self, base: str) -> list[str]:
        """Return the paths that differ from `base`: in the pushed tree, or in HEAD, index and working tree."""
        options = ["--name-only", "-z", "--no-renames"]
        if self.git_dir is not None:
            return _names(self._git("diff-tree", "-r", *options, base, self.new))
        untracked = self._git("ls-files", "-z", "--others", "--exclude-standard")
        return sorted({*_names(self._git("diff", "--relative", *options, base, "--")), *_names(untracked)})

    def commits(self, base: str) -> list[Commit]:
        """Return the commits that `new` has and `base` has not, without merges, oldest first."""
        words = ["--no-merges", "--reverse", "--name-only", "--no-renames"]
        trailers = "%x01%H %(trailers:key=Wharf-Release,valueonly,separator=%x2c)"
        text = self._git("log", *words, f"--format={trailers}", f"{base}..{self.new}")
        found: list[Commit] = []
        for entry in text.split("\x01")[1:]:
            head, *paths = entry.splitlines()
            commit, _, pins = head.partition(" ")
            named = [pin.strip() for pin in pins.split(",") if pin.strip()]
            found.append(Commit(commit, named, [path for path in paths if path]))
        return found

    def merges(self, base: str, folder: str) -> list[Merge]:
        """Return the merges that `new` has and `base` has not, with the paths below `folder` that they change.

        A path is changed by a merge when it is neither what a parent has, nor, where only some parents changed it since
        they parted, what one of those has: git itself would have taken theirs.
        """
        listed = self._git("rev-list", "--merges", "--reverse", "--parents", f"{base}..{self.new}")
        found: list[Merge] = []
        for line in listed.splitlines():
            commit, *parents = line.split()
            result, sides = self._blobs(commit, folder), [self._blobs(parent, folder) for parent in parents]
            paths = {path for side in sides for path, _ in side.items() ^ result.items()}
            if not paths:
                continue
            ancestors = [self._blobs(ancestor, folder) for ancestor in self._ancestors(parents)] or [{}]
            wrong = [
                path
                for path in sorted(paths)
                if all(
                    _made_up(result.get(path), [side.get(path) for side in sides], before.get(path))
                    for before in ancestors
                )
            ]
            found.append(Merge(commit, wrong))
        return found

    def _ancestors(self, parents: Sequence[str]) -> list[str]:
        """Return the best common ancestors of `parents`; none for histories that have nothing in common."""
        options = ["--all"] if len(parents) == 2 else ["--all", "--octopus"]
        try:
            return self._git("merge-base", *options, *parents).split()
        except CommandFailed:
            return []

    def _blobs(self, commit: str, folder: str) -> dict[str, str]:
        """Return mode and blob of each file below `folder` at `commit`."""
        entries = _names(self._git("ls-tree", "-r", "-z", "--full-tree", commit, "--", folder))
        return {path: meta for meta, _, path in (entry.partition("\t") for entry in entries)}

    def read(self, wanted: Sequence[tuple[str, str]]) -> list[str | None]:
        """Return the text of each `(revision, path)`, None where there is none."""
        return gitcommit.read_all(self.git_dir or self.root, wanted) if wanted else []

    def past(self, revision: str, paths: Iterable[str]) -> dict[str, list[Release]]:
        """Return every release that each of `paths` has ever been up to `revision`; one pass over the history."""
        wanted = sorted(set(paths))
        found: dict[str, list[Release]] = {path: [] for path in wanted}
        if not wanted or not self.there:
            return found
        # A long list would not fit on a command line; then the folder is walked and the rest ignored.
        spec = wanted if len(wanted) <= 100 else [str(Path(wanted[0]).parents[1])]
        words = ["--raw", "--no-abbrev", "--no-renames", "-m", "--format=%x01%H"]
        seen: dict[tuple[str, str], str] = {}  # (path, blob id): a commit that has it
        commit = ""
        for line in self._git("log", *words, revision, "--", *spec).splitlines():
            meta, _, path = line.partition("\t")
            if line.startswith("\x01"):
                commit = line[1:]
            elif path in found and (blob := meta.split()[3]).strip("0"):
                seen.setdefault((path, blob), commit)
        texts = self.read([(commit, path) for (path, _), commit in seen.items()])
        for (path, _), text in zip(seen, texts, strict=True):
            try:
                found[path].append(release.parse(text or "", path))
            except Mistake:
                continue  # an older or broken form: it proves nothing
        return found


def _made_up(result: str | None, sides: Sequence[str | None], before: str | None) -> bool:
    """Tell whether a merge holds a file that none of its sides would have brought; None: no such file."""
    changed = [side for side in sides if side != before]
    return result not in (changed or sides)


def _names(listed: str) -> list[str]:
    return [path for path in listed.split("\0") if path]
