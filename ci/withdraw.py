"""Take releases out of the local target's main, as one commit: what they pin is not to be had on this machine."""

from __future__ import annotations

from collections.abc import Collection

from ci.git import gitcommit, remote
from ci.git.remote import MAIN, Push
from ci.history import release_at
from ci.release import path_of
from ci.workspace import Workspace


def withdraw(workspace: Workspace, pairs: Collection[tuple[str, str]]) -> str | None:
    """Remove the releases and manifests of the (model, environment) `pairs`; return the commit, None if none is there.

    Raises Refusal when the origin's check says no, Moved when main moved meanwhile (run it again).
    """
    target = remote.target(workspace)
    base = remote.main_of(workspace.root, target)
    changes: dict[str, str | None] = {}
    pins: list[str] = []
    for name, environment in sorted(pairs):
        release = release_at(workspace.root, base, environment, name)
        if release is None:
            continue
        pins.append(f"Wharf-Release: {environment}/{name}@{release.version}")
        rendered = gitcommit.files(workspace.root, base, f"gitops/rendered/{environment}/{name}")
        changes |= dict.fromkeys([path_of(environment, name), *rendered])
    message = (
        "Withdraw releases that this registry does not know\n\n"
        "They came with a clone, or the local state was forgotten.\n\n"
        + "\n".join([*pins, "Wharf-Action: withdraw", ""])
    )
    who = gitcommit.local_identity(workspace.root)
    commit = gitcommit.commit(workspace.root, base, changes, message, who)
    if commit:
        remote.push(workspace.root, target, Push(MAIN, commit))
    return commit
