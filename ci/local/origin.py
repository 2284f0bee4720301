"""The origin of the local target: the bare repository `.wharf/origin.git` that the agent follows.

It stands where GitHub stands for a team: the user's commits come by `git push`, the machine's by `promote` and
`rollback`, and a server-side hook runs the validation before main moves (see `ci/local/pre_receive.py`). The cluster
target follows the same origin; there another hook tells Argo CD of a push (see `ci/local/post_receive.py`).
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from ci.errors import Mistake, Refusal, Unavailable
from ci.files import write_atomic
from ci.git import remote
from ci.git.gitcommit import PLAIN, last_words, require_repository
from ci.git.remote import LOCAL_NAME, MAIN, Moved, Push, Remote
from ci.local import post_receive, pre_receive
from ci.shell import CommandFailed, git
from ci.workspace import Workspace

_HOOK = """#!/bin/sh
# Written by `wharf up`, again at each start: what the pull-request check is elsewhere.
python={python}
if [ ! -x "$python" ]; then
    echo "ERROR  $python is gone, so nothing can be checked: run 'make up', then push again" >&2
    exit 1
fi
exec "$python" -I hooks/pre_receive.py
"""

_AFTER = """#!/bin/sh
# Written by `wharf up`, again at each start: where the target is a cluster, its Argo CD is told of the push.
grep -q '"cluster"' ../platform.json 2>/dev/null || exit 0
exec {python} -I hooks/post_receive.py
"""

_SETTINGS = {
    "receive.denyNonFastForwards": "false",  # main: by the hook; a proposal may be made again
    "receive.denyDeletes": "false",  # main: by the hook; an accepted proposal goes away
    "receive.shallowUpdate": "true",  # a shallow clone can be where it starts
    "core.logAllRefUpdates": "true",
    "gc.autoDetach": "false",  # nothing runs on behind the user's back
}


def ensure(workspace: Workspace) -> Path:
    """Make the origin if there is none, bring its hook up to date, add the git remote `wharf`; return its path.

    Safe to repeat and to be killed: a new origin appears whole or not at all. It starts at the user's HEAD.
    Raises Mistake when this is no git repository or a remote `wharf` points elsewhere.
    """
    require_repository(workspace.root)
    path = remote.local_origin(workspace)
    _check_remote(workspace, path)
    try:
        if not (path / "HEAD").is_file():
            _create(workspace, path)
        for key, value in _SETTINGS.items():
            if git(path, "config", "--default", "", key, env=_at(path)) != value:
                git(path, "config", key, value, env=_at(path))
        _write_hook(path)
        _add_remote(workspace, path)
    except OSError as error:
        raise Unavailable(f"{path} could not be written: {last_words(error)}") from None
    except CommandFailed as error:
        raise Unavailable(f"the origin could not be made: {last_words(error)}") from None
    return path


def _at(path: Path) -> dict[str, str]:
    return PLAIN | {"GIT_DIR": str(path)}


def _create(workspace: Workspace, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(".origin.git.*"):  # of one that was killed
        shutil.rmtree(left, ignore_errors=True)
    draft = Path(tempfile.mkdtemp(prefix=".origin.git.", dir=path.parent))
    try:
        # No template: the user's own sample hooks do not belong here.
        git(draft, "init", "--quiet", "--bare", "--initial-branch=main", "--template=", ".", env=PLAIN)
        git(draft, "config", "receive.shallowUpdate", "true", env=_at(draft))
        git(workspace.root, "push", "--quiet", "--no-verify", str(draft), f"HEAD:{MAIN}", env=PLAIN)
        draft.chmod(0o755)
        draft.rename(path)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        if not (path / "HEAD").is_file():  # else another `wharf up` was quicker, and its origin is as good
            raise


def _write_hook(path: Path) -> None:
    hooks = path / "hooks"
    wanted = {
        "pre_receive.py": Path(pre_receive.__file__).read_text(encoding="utf-8"),
        "pre-receive": _HOOK.format(python=shlex.quote(sys.executable)),
        "post_receive.py": Path(post_receive.__file__).read_text(encoding="utf-8"),
        "post-receive": _AFTER.format(python=shlex.quote(sys.executable)),
    }
    for name, text in wanted.items():
        hook = hooks / name
        if not hook.is_file() or hook.read_text(encoding="utf-8") != text:
            write_atomic(hook, text)
        if not os.access(hook, os.X_OK):
            hook.chmod(0o755)


def _check_remote(workspace: Workspace, path: Path) -> None:
    url = remote.remotes(workspace.root).get(LOCAL_NAME)
    if url is not None and not _is_ours(url, path):
        raise Mistake(
            f"the git remote '{LOCAL_NAME}' points to {url}, not to this workspace's origin",
            tip=f"rename yours with `git remote rename {LOCAL_NAME} other`, then run this again",
        )


def _is_ours(url: str, path: Path) -> bool:
    """Tell whether `url` is the origin at `path`, or one that moved away with this clone."""
    there = Path(url)
    return there == path or (there.parts[-2:] == path.parts[-2:] and not there.exists())


def _add_remote(workspace: Workspace, path: Path) -> None:
    url = remote.remotes(workspace.root).get(LOCAL_NAME)
    if url is None:
        git(workspace.root, "remote", "add", LOCAL_NAME, str(path), env=PLAIN)
    elif url != str(path):
        git(workspace.root, "remote", "set-url", LOCAL_NAME, str(path), env=PLAIN)


def sync_user(workspace: Workspace) -> str:
    """Bring the user's new commits to the origin where that is a plain push; say in one line how things stand.

    The user's branch and files are never changed. Raises Refusal when the origin's check refuses the commits.
    """
    root = workspace.root
    origin = Remote(LOCAL_NAME, str(remote.local_origin(workspace)), "local")
    mine = git(root, "rev-parse", "HEAD", env=PLAIN)
    theirs = remote.main_of(root, origin)
    note = _uncommitted(root)
    if mine == theirs:
        return f"the origin has your commits{note}"
    shared = git(root, "merge-base", mine, theirs, env=PLAIN) if _related(root, mine, theirs) else ""
    if shared == mine:
        count = git(root, "rev-list", "--count", f"{mine}..{theirs}", env=PLAIN)
        return f"the origin is {_commits(count)} ahead of you: `git pull {LOCAL_NAME} main` gets them{note}"
    if shared != theirs:
        return (
            "you and the origin both have new commits: "
            f"`git pull --no-rebase {LOCAL_NAME} main && git push {LOCAL_NAME} HEAD:main` joins them{note}"
        )
    count = git(root, "rev-list", "--count", f"{theirs}..{mine}", env=PLAIN)
    try:
        remote.push(root, origin, Push(MAIN, mine))
    except Moved:
        return f"the origin moved meanwhile; run this again{note}"
    except Refusal as error:
        raise Refusal(error.lines, tip=f"correct that, commit, and run `git push {LOCAL_NAME} HEAD:main`") from None
    return f"{_commits(count)} of yours went to the origin{note}"


def _related(root: Path, left: str, right: str) -> bool:
    try:
        git(root, "merge-base", left, right, env=PLAIN)
    except CommandFailed:
        return False
    return True


def _commits(count: str) -> str:
    return "1 commit" if count == "1" else f"{count} commits"


def _uncommitted(root: Path) -> str:
    changed = len(git(root, "status", "--porcelain", env=PLAIN).splitlines())
    what = "1 changed file is" if changed == 1 else f"{changed} changed files are"
    return f" ({what} not committed: the origin sees commits only)" if changed else ""
