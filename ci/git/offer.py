"""Turn a release into one commit on the target's main branch and offer it.

The local target and its proposals get a push, GitHub a pull request, any other git server a branch to merge.
The commit holds the release and its fresh rendering, nothing else, and is built on the newest main without touching
the user's index, branch or files. Until the push is accepted nothing has happened; the push moves all its refs or
none, so a command killed at any moment is repaired by running it again.

When main moved between fetch and push, the release is made again on the new main, unless the same release was
changed there: then the person decides.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ci.console import say
from ci.errors import Mistake, Refusal, did_you_mean
from ci.git import gitcommit, github, remote
from ci.git.gitcommit import PLAIN
from ci.git.remote import MAIN, Moved, Push, Remote
from ci.history import release_at
from ci.release import Release, dump, path_of
from ci.shell import git
from ci.workspace import Workspace, load_spec

if TYPE_CHECKING:
    from ci.environments import Environment
    from models.spec import ModelSpec

_ATTEMPTS = 5


@dataclass(frozen=True)
class Base:
    """The newest main of the target, with what a release of one model needs from it."""

    commit: str
    spec: ModelSpec
    environments: list[Environment]  # in promotion order

    def environment(self, name: str) -> Environment:
        """Return the environment `name`; raises Mistake for an unknown one."""
        names = [environment.name for environment in self.environments]
        if name not in names:
            raise Mistake(
                f"no environment '{name}' in gitops/environments/{did_you_mean(name, names)}",
                tip=f"environments in their order: {', '.join(names)}",
            )
        return self.environments[names.index(name)]


@dataclass(frozen=True)
class Draft:
    """The release to make, and why."""

    release: Release
    before: Release | None
    action: Literal["promote", "rollback"]

    @property
    def title(self) -> str:
        """First line of the commit and title of the pull request."""
        if self.action == "promote":
            return f"Promote {self.release.model} version {self.release.version} to {self.release.environment}"
        return f"Roll {self.release.model} back to version {self.release.version} in {self.release.environment}"

    @property
    def message(self) -> str:
        """The whole commit message, with the trailers that `validate` asks for."""
        release = self.release
        was = f"version {self.before.version} ran there" if self.before else "nothing ran there"
        pin = f"{release.environment}/{release.model}@{release.version}"
        why = f"Before it {was}. Evidence {release.evidence}."
        return f"{self.title}\n\n{why}\n\nWharf-Release: {pin}\nWharf-Action: {self.action}\n"

    def branch(self) -> str:
        """Return the branch for a proposal or pull request of this release."""
        return f"{self.action}/{self.release.environment}-{self.release.model}-v{self.release.version}"


@dataclass(frozen=True)
class Offer:
    """What became of a draft."""

    draft: Draft
    remote: Remote
    commit: str | None  # None: the target had exactly this already
    branch: str = ""  # "main", or the branch that waits for a merge; empty when nothing was pushed
    url: str = ""  # of the pull request
    diff: str = ""  # only of a dry run
    again: bool = False  # the branch was there with exactly this


def read_base(workspace: Workspace, target: Remote, commit: str, name: str) -> Base:
    """Read the model's contract and the environments at `commit` of the target's main."""
    from ci.environments import load_all

    spec_path = f"models/{name}/model.yaml"
    with tempfile.TemporaryDirectory(prefix="wharf-base-") as folder:
        tree = Path(folder)
        paths = [spec_path, *gitcommit.files(workspace.root, commit, "gitops/environments")]
        gitcommit.extract(workspace.root, commit, paths, tree)
        if not (tree / spec_path).is_file():
            workspace.model(name)  # a name that is unknown here too gets its own message
            raise Mistake(
                f"{target.name}/main has no {spec_path}: your commit is not there yet",
                tip=f"run `git push {target.name} HEAD:main`, then this again",
            )
        return Base(commit, load_spec(Workspace(tree), name), load_all(tree))


def offer(
    workspace: Workspace,
    name: str,
    draft_on: Callable[[Base], Draft],
    *,
    propose: bool = False,
    dry_run: bool = False,
    text: Callable[[Draft], str] = lambda draft: draft.message,
) -> Offer:
    """Make the draft of model `name` on the newest main and offer it.

    `draft_on` is called for each main that is tried; `text` gives the pull request's text. Raises Refusal when the
    target's check says no or the same release was changed meanwhile, Unavailable when the target does not answer.
    """
    target = remote.target(workspace)
    who = (gitcommit.local_identity if target.kind == "local" else gitcommit.identity)(workspace.root)
    for _ in range(_ATTEMPTS):
        heads = remote.heads(workspace.root, target)
        base = read_base(workspace, target, remote.main_of(workspace.root, target, heads), name)
        draft = draft_on(base)
        changes = release_changes(workspace.root, base, draft.release)
        commit = gitcommit.commit(workspace.root, base.commit, changes, draft.message, who)
        if commit is None:
            return Offer(draft, target, None)
        if dry_run:
            diff = git(workspace.root, "diff", "--no-color", "--no-ext-diff", base.commit, commit, env=PLAIN)
            return Offer(draft, target, commit, diff=diff)
        try:
            if target.kind == "local" and not propose:
                _push_to_main(workspace.root, target, draft, commit, heads)
                return Offer(draft, target, commit, "main")
            return _push_branch(workspace.root, target, draft, commit, base.commit, heads, text)
        except Moved:
            if _taken(workspace.root, target, draft):
                return Offer(draft, target, None)
            say(f"  {target.name}/main moved meanwhile; making the release again on the new one")
    raise Refusal(f"{target.name}/main moved {_ATTEMPTS} times meanwhile; nothing was pushed: run this command again")


def release_changes(root: Path, base: Base, release: Release) -> dict[str, str | None]:
    """Return what a release changes in the tree: its file, its rendering, and what a former rendering left."""
    from ci.render import render_release

    environment = base.environment(release.environment)
    folder = f"gitops/rendered/{release.environment}/{release.model}"
    changes: dict[str, str | None] = dict.fromkeys(gitcommit.files(root, base.commit, folder))
    changes |= {f"{folder}/{name}": text for name, text in render_release(release, base.spec, environment).items()}
    return changes | {path_of(release.environment, release.model): dump(release)}


def _push_to_main(root: Path, target: Remote, draft: Draft, commit: str, heads: dict[str, str]) -> None:
    moves = [Push(MAIN, commit)]
    proposal = f"refs/heads/{draft.branch()}"
    if proposal in heads:  # what was proposed is accepted by this
        moves.append(Push(proposal, None, lease=heads[proposal]))
    for line in remote.push(root, target, *moves):
        if line.startswith("Argo CD was"):  # told, or not told, of this push
            say(f"  {line}")


def _push_branch(
    root: Path,
    target: Remote,
    draft: Draft,
    commit: str,
    base: str,
    heads: dict[str, str],
    text: Callable[[Draft], str],
) -> Offer:
    branch, ref = draft.branch(), f"refs/heads/{draft.branch()}"
    there = heads.get(ref)
    if there:
        remote.fetch(root, target, there)
        _only_ours(root, branch, base, there)
        if _same(root, there, commit):
            commit = there  # proposed before, on this very main
    # Everything that can fail without the network comes before the push.
    desk = github.desk(target.repository) if target.kind == "github" else None
    body = text(draft) if desk else ""
    if commit != there:
        remote.push(root, target, Push(ref, commit, lease=there or ""))
    if desk is None:
        return Offer(draft, target, commit, branch, again=commit == there)
    try:
        url = desk.open_or_update(branch, draft.title, body)
    except BaseException:
        if commit != there:
            remote.push(root, target, Push(ref, there, lease=commit))
        raise
    return Offer(draft, target, commit, branch, url, again=commit == there)


def _only_ours(root: Path, branch: str, base: str, there: str) -> None:
    """Raise Refusal when somebody added commits of their own to our branch: they would be lost."""
    trailers = "%H %(trailers:key=Wharf-Release,valueonly,separator=%x2c)"
    for line in git(root, "log", f"--format={trailers}", f"{base}..{there}", env=PLAIN).splitlines():
        commit, _, pin = line.partition(" ")
        if not pin:
            raise Refusal(
                f"branch {branch} holds a commit that wharf did not make ({commit[:10]}); it is left as it is",
                tip="merge or delete that branch, then run this again",
            )


def _same(root: Path, left: str, right: str) -> bool:
    what = [git(root, "rev-parse", f"{commit}^{{tree}}", f"{commit}^", env=PLAIN) for commit in (left, right)]
    return what[0] == what[1]


def _taken(root: Path, target: Remote, draft: Draft) -> bool:
    """Tell whether somebody else has just made this very release; raises Refusal when they made another one.

    Then nothing is left to do: a rollback that were drafted anew would go back one further than anybody asked for.
    """
    main = remote.main_of(root, target)
    now = release_at(root, main, draft.release.environment, draft.release.model)
    if now not in (draft.before, draft.release):
        where = f"{draft.release.environment}/{draft.release.model}"
        what = f"is version {now.version} now" if now else "was removed"
        raise Refusal(f"{target.name}/main moved meanwhile: {where} {what}; nothing was pushed: run this command again")
    return now == draft.release and now != draft.before
