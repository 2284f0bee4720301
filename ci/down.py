"""`wharf down`: stop all that `wharf up` started, and nothing else."""

from __future__ import annotations

import argparse

from ci.console import step
from ci.local import platform
from ci.workspace import Workspace


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clean", action="store_true", help="also remove .wharf and the git remote `wharf`")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
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
