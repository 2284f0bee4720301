"""`wharf down`: stop all that `wharf up` started, and nothing else."""

from __future__ import annotations

import argparse

from ci.cluster import access
from ci.console import say, step
from ci.errors import Mistake, Unavailable
from ci.local import platform
from ci.workspace import Workspace


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clean", action="store_true", help="also remove .wharf and the git remote `wharf`")
    parser.add_argument("--target", choices=["local", "cluster"], default="local", help="what to stop (default: local)")
    parser.add_argument("--provider", metavar="NAME", help="of the cluster (default: the one that `up` used)")
    parser.add_argument("--yes", action="store_true", help="do not ask before removing from a cluster elsewhere")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    if options.target == "cluster":
        _cluster_down(workspace, options.provider, options.yes)
    elif known := access.load(workspace):
        raise Mistake(
            f"this checkout runs on a cluster ({known.provider}); stopping it removes what it holds",
            tip="`make cluster-down` does that",
        )
    with step("stop") as shown:
        stopped = platform.down(workspace)
        shown.note = ", ".join(stopped) or "nothing was running"
    if options.clean:
        with step("forget the local state") as shown:
            shown.note = ".wharf is gone" if workspace.state.is_dir() else "there was none"
            platform.forget(workspace)
    elif stopped:
        print("Stopped. What was made is kept in .wharf: `make up` starts it again, `make clean` forgets it.")
    return 0


def _cluster_down(workspace: Workspace, wanted: str | None, agreed: bool) -> None:
    """Remove the cluster of this workspace, or the named provider's, also when `up` never finished."""
    from ci.cluster import provider, up

    try:
        chosen = provider.choose(workspace, wanted, agreed=agreed)
    except Unavailable:
        if wanted or access.load(workspace):
            raise
        say("  no cluster: none was made here, and none could be")
        return
    with step(f"take down the {chosen.name} cluster") as shown:
        shown.note = ", ".join(up.stop(workspace, chosen)) or "nothing was there"
