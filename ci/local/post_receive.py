"""The local origin's hook after a push: tell Argo CD, where the target is a cluster, so that it need not wait to look.

A copy of this file stands in `.wharf/origin.git/hooks/`; git runs it with the lines `old new ref` once main has moved.
The push is done by then: whatever goes wrong here is one line to the pusher. It must work whatever state the user's
checkout is in, so it imports nothing but the standard library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

MAIN = "refs/heads/main"
LONGEST_S = 15


def main() -> int:
    """Tell the cluster of the push on standard input."""
    repository = Path(os.environ.get("GIT_DIR", ".")).resolve()
    moves = [line.split() for line in sys.stdin.read().splitlines()]
    for old, new, ref in moves:
        if ref == MAIN:
            tell(repository, old, new)
    return 0


def tell(repository: Path, old: str, new: str) -> None:
    """Run the refresh with the code of the checkout; print what it says, or why it cannot be run."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("GIT_", "PYTHON"))}
    command = [sys.executable, "-m", "ci.cluster.refresh", str(repository.parent.parent), old, new]
    try:
        done = subprocess.run(
            command,
            cwd=repository.parent.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LONGEST_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        why = f"the cluster said nothing for {LONGEST_S} seconds"
    else:
        if done.returncode == 0:
            print(done.stdout, end="", flush=True)
            return
        why = (done.stderr.strip().splitlines() or [f"code {done.returncode}"])[-1]
    print(f"Argo CD was not told of this push and will see it at its next poll: {why}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
