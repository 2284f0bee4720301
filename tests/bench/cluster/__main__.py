"""`make bench-cluster`: print the figures of the cluster target in docs/benchmarks.md. Nothing here fails by time.

    python -m tests.bench.cluster [PART …] [--provider NAME] [--clone FOLDER] [--cold] [--releases N] [--compared N]

bring-up   `wharf up --target cluster --platform-only` in a fresh clone, and again; --cold first with empty caches
loop       a second version of a model; a push until it answers; rolling updates under load
releases   N generated releases in one commit until all are Synced, one changed among them; before that fewer, with
           Argo CD's plain settings and with ours (--compared 0 leaves them out)
teams      the same with one Application for each team instead of each model: what we did not choose

Without a PART it is all but the last. It needs a machine on which `make cluster` works and no cluster of ours is up.
"""

from __future__ import annotations

import argparse
import sys

from ci.console import say
from ci.errors import WharfError
from tests.bench.cluster import generated, loop, releases, setting, teams
from tests.cluster.cluster import Cluster

PARTS = ("bring-up", "loop", "releases", "teams")


def main(words: list[str]) -> int:
    """Measure and print; returns 4 where no cluster can be brought up."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.cluster")
    parser.add_argument("part", nargs="*", help=f"of {', '.join(PARTS)} (default: all but teams)")
    parser.add_argument("--provider", help="of the cluster (default: by what is there)")
    parser.add_argument("--clone", metavar="FOLDER", help="keep the clone and its cluster here for the next run")
    parser.add_argument("--cold", action="store_true", help="bring it up with empty caches, too (half an hour)")
    parser.add_argument("--releases", type=int, default=1000, metavar="N")
    parser.add_argument("--compared", type=int, default=200, metavar="N", help="releases with each of both settings")
    options = parser.parse_args(words)
    if unknown := set(options.part) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}")
    try:
        measure(options)
    except WharfError as error:
        say("\n".join(f"ERROR  {line}" for line in error.lines))
        return error.exit_code
    return 0


def measure(options: argparse.Namespace) -> None:
    parts = options.part or PARTS[:-1]
    with setting.clone(options.clone, options.provider) as (user, chosen):
        shown = setting.bring_up(user, chosen, cold=options.cold) if "bring-up" in parts else ""
        if shown:
            print(shown, flush=True)
        elif "loop" in parts or "teams" in parts:
            user.wharf("up", "--target", "cluster", "--provider", chosen, "--platform-only", seconds=3600)
        if "loop" in parts:
            cluster = setting.connect(user)
            for part in (loop.ship_two, loop.pushes, loop.rolling):
                print(part(cluster), flush=True)

        def connect() -> Cluster:
            return setting.connect(user)

        if "releases" in parts or "teams" in parts:
            with releases.ready(user, connect, chosen, generated.names(options.releases)) as (cluster, made):
                if "releases" in parts:
                    print(releases.measure(cluster, made, options.compared), flush=True)
                if "teams" in parts:
                    print(teams.measure(cluster, made), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
