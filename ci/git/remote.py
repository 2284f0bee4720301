"""The git repository that a target follows: which remote it is, what its main branch holds, and pushing to it.

The remote `wharf` (the bare repository of the local target) wins where it exists; otherwise it is `origin`.
Nothing here moves a branch of the user, and no push here is forced onto main.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from ci.errors import Mistake, Refusal, Unavailable, WharfError
from ci.git.gitcommit import PLAIN, require_repository
from ci.shell import CommandFailed, git
from ci.workspace import Workspace

LOCAL_NAME = "wharf"
MAIN = "refs/heads/main"


class Moved(WharfError):
    """Somebody else pushed between our fetch and our push."""


@dataclass(frozen=True)
class Remote:
    """A git remote that a target follows."""

    name: str
    url: str
    kind: Literal["local", "github", "git"]

    @property
    def repository(self) -> str:
        """`owner/name` on GitHub."""
        return _github_path(self.url) or ""


def _github_path(url: str) -> str | None:
    """Return `owner/name` when `url` is a GitHub repository (https, ssh or scp-like address), else None."""
    host = urlsplit(os.environ.get("GITHUB_SERVER_URL", "https://github.com")).hostname or "github.com"
    hosts = "|".join(re.escape(name) for name in {host, "github.com"})
    found = re.fullmatch(rf"(?:(?:https?|ssh|git)://)?(?:[^@/]+@)?(?:{hosts})(?::\d+)?[/:](.+?/.+?)(?:\.git)?/?", url)
    return found.group(1) if found else None


def local_origin(workspace: Workspace) -> Path:
    """Return the path of the bare repository that the local target follows."""
    return workspace.state / "origin.git"


def remotes(root: Path) -> dict[str, str]:
    """Return the names and fetch addresses of the git remotes of `root`."""
    return {name: git(root, "remote", "get-url", name, env=PLAIN) for name in git(root, "remote", env=PLAIN).split()}


def find(workspace: Workspace) -> Remote | None:
    """Return the remote that this workspace's target follows, None when there is none."""
    require_repository(workspace.root)
    known = remotes(workspace.root)
    if LOCAL_NAME in known and local_origin(workspace).is_dir():
        return Remote(LOCAL_NAME, known[LOCAL_NAME], "local")
    if "origin" in known:
        # As it was written, then as `url.<base>.insteadOf` rewrites it: a mirror may stand in between.
        written = git(workspace.root, "config", "remote.origin.url", env=PLAIN)
        found = next((url for url in (written, known["origin"]) if _github_path(url)), None)
        return Remote("origin", found or known["origin"], "github" if found else "git")
    return None


def target(workspace: Workspace) -> Remote:
    """Return the remote that this workspace's target follows; raises Mistake when there is none."""
    remote = find(workspace)
    if remote is None:
        raise Mistake(
            "no target: there is neither the local origin nor a git remote named 'origin'",
            tip="run `wharf up` for the local target, or `git remote add origin URL`",
        )
    return remote


def heads(root: Path, remote: Remote) -> dict[str, str]:
    """Return the branches of `remote` (full ref name: commit); raises Unavailable when it does not answer."""
    try:
        listed = git(root, "ls-remote", "--heads", remote.name, env=PLAIN)
    except CommandFailed as error:
        raise _unreachable(remote, error) from None
    return {ref: commit for commit, ref in (line.split("\t", 1) for line in listed.splitlines())}


def main_of(root: Path, remote: Remote, known: dict[str, str] | None = None) -> str:
    """Return the newest commit of the remote's main branch, with its objects fetched.

    `known` is what `heads` just returned. Fetches the bare commit, not a branch: two commands at once must not fight
    over one tracking ref.
    """
    commit = (heads(root, remote) if known is None else known).get(MAIN)
    if commit is None:
        raise Mistake(f"{remote.name} has no branch main", tip=f"run `git push {remote.name} HEAD:main`")
    fetch(root, remote, commit)
    return commit


def fetch(root: Path, remote: Remote, commit: str) -> None:
    """Bring `commit` and its history into the object store of `root`; moves no ref."""
    if _is_complete(root, commit):
        return
    quiet = ("--quiet", "--no-tags", "--no-write-fetch-head", "--no-auto-maintenance")
    try:
        git(root, "fetch", *quiet, remote.name, commit, env=PLAIN)
    except CommandFailed as error:
        raise _unreachable(remote, error) from None


def _is_complete(root: Path, commit: str) -> bool:
    """Tell whether a ref of this repository reaches `commit`, so that its whole history is here."""
    try:
        return bool(git(root, "for-each-ref", "--count=1", "--contains", commit, "--format=1", env=PLAIN))
    except CommandFailed:
        return False  # not here at all


def _unreachable(remote: Remote, error: CommandFailed) -> Unavailable:
    lines = [line for line in error.stderr.splitlines() if line.strip()]
    cause = next((line for line in lines if line.startswith("fatal:")), lines[0] if lines else error.lines[0])
    return Unavailable(
        f"the git remote '{remote.name}' ({remote.url}) does not answer: {cause.removeprefix('fatal: ').strip()}",
        tip="run `wharf up`" if remote.kind == "local" else "check the network and your access, then run this again",
    )


@dataclass(frozen=True)
class Push:
    """One ref to move: `commit` None deletes it; `lease` is what it must be now where the push is forced."""

    ref: str
    commit: str | None
    lease: str | None = None  # a branch that only the machine writes may be replaced; "" = must not exist


def push(root: Path, remote: Remote, *moves: Push) -> list[str]:
    """Push all `moves` or none and return what the remote's side said.

    Raises Moved when a ref is not where we thought, Refusal with the lines of the remote's check when it says no,
    Unavailable when the remote does not answer.
    """
    # The user's own pre-push hook is for the user's commits; the remote judges the machine's.
    command = ["git", "push", "--porcelain", "--atomic", "--no-verify", "--no-follow-tags"]
    command += [f"--force-with-lease={move.ref}:{move.lease}" for move in moves if move.lease is not None]
    command += [remote.name, *(f"{move.commit or ''}:{move.ref}" for move in moves)]
    done = subprocess.run(command, cwd=root, env={**os.environ, **PLAIN}, capture_output=True, text=True, check=False)
    said = remote_lines(done.stderr)
    if done.returncode == 0:
        return said + _tell_cluster(root, remote, moves)
    outcome = "\n".join(line for line in done.stdout.splitlines() if line.startswith("!"))
    # Overtaken while the other side judged: it names the two commits, in the outcome or in what it said.
    overtaken = r"is at [0-9a-f]+ but expected|incorrect old value|failed to update ref|reference already exists"
    if "[rejected]" in outcome or re.search(overtaken, f"{outcome}\n{done.stderr}"):
        raise Moved(f"{remote.name} moved meanwhile")
    if "[remote rejected]" in outcome:
        reason = re.search(r"\[remote rejected\] \((.+?)\)", outcome)
        faults = [line for line in said if not line.startswith("TIP  ")]
        tips = [line.removeprefix("TIP  ") for line in said if line.startswith("TIP  ")]
        why = reason.group(1) if reason else "no reason given"
        if "unpack" in why:  # it could not even store the objects
            cause = next((line.removeprefix("fatal: ") for line in faults), why)
            raise Unavailable(f"{remote.name} could not store the commit, nothing was changed there: {cause}")
        # Beside its faults a check may have printed its progress; a check of another kind prints what it likes.
        marked = [line.removeprefix("ERROR  ") for line in said if line.startswith("ERROR  ")]
        raise Refusal([f"{remote.name} refused the push: {why}", *(marked or faults)], tip="; ".join(tips))
    raise _unreachable(remote, CommandFailed(command, done.returncode, done.stderr))


def _tell_cluster(root: Path, remote: Remote, moves: Iterable[Push]) -> list[str]:
    """Tell the Argo CD of this workspace's cluster that main has moved; return what to tell the user.

    The local origin's own hook does that, also for pushes of people. Elsewhere it makes a webhook unnecessary for what
    the commands push.
    """
    commit = next((move.commit for move in moves if move.ref == MAIN), None)
    if remote.kind == "local" or commit is None:
        return []
    from ci.cluster import refresh

    line = refresh.after_push(Workspace(root), root, f"{commit}^", commit)
    return [line] if line else []


def remote_lines(stderr: str) -> list[str]:
    """Return what the other side of a push said, without git's `remote:` and padding."""
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).strip() for line in stderr.splitlines()]
    said = [line.removeprefix("remote:").strip() for line in lines if line.startswith("remote:")]
    return [re.sub(r"^(ERROR|TIP)\s+", r"\1  ", line) for line in said if line]
