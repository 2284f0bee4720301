"""Where it is measured: a clone of its own, brought up from nothing, with its steps timed."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ci.cluster import access, kube, provider
from ci.console import say
from ci.errors import WharfError
from ci.images import base
from ci.workspace import Workspace
from tests.bench.bench_loop import steps
from tests.cluster.cluster import Cluster
from tests.cluster.conftest import fit_two_cores
from tests.cluster.dump import dump
from tests.e2e.newcomer import User, newcomer

_LONGEST_S = 3600


@dataclass(frozen=True)
class Timed:
    """A command: its seconds in all, and by the steps that it showed."""

    whole: float
    steps: dict[str, float]


def timed(user: User, *words: str) -> Timed:
    begun = time.monotonic()
    user.wharf(*words, seconds=_LONGEST_S)
    return Timed(time.monotonic() - begun, steps(user.said))


@contextmanager
def clone(kept: str | None, wanted: str | None) -> Generator[tuple[User, str]]:
    """Give a clone and the provider of its cluster; both are gone afterwards unless they are `kept` in a folder.

    Raises Unavailable where no provider can run.
    """
    with tempfile.TemporaryDirectory(prefix="wharf-") as temporary:
        user = User((Path(kept).absolute() if kept else Path(temporary)) / "modelwharf")
        if not user.clone.is_dir():
            newcomer(user.clone)
            fit_two_cores(user)
        chosen = provider.choose(Workspace(user.clone), wanted).name
        try:
            yield user, chosen
        except BaseException:
            _say_what_the_cluster_says(user)
            raise
        finally:
            if not kept:
                user.wharf("down", "--target", "cluster", "--clean", seconds=600)


def _say_what_the_cluster_says(user: User) -> None:
    known = access.load(Workspace(user.clone))
    if known:
        try:
            say(dump(kube.connect(known), known.provider))
        except WharfError as error:
            say(f"the cluster cannot be asked: {error}")


def connect(user: User) -> Cluster:
    """Return the cluster of a clone that is up."""
    known = access.require(Workspace(user.clone))
    return Cluster(user, known, kube.connect(known), base.ensure(known))


def bring_up(user: User, chosen: str, *, cold: bool) -> str:
    """Bring the cluster up, again when it is there, and with `cold` first with empty caches; return the table."""
    words = ("up", "--target", "cluster", "--provider", chosen, "--platform-only")
    first: Timed | None = None
    if cold:
        with tempfile.TemporaryDirectory(prefix="wharf-cold-") as empty:
            caches = {"XDG_CACHE_HOME": empty, "GOMODCACHE": f"{empty}/go/mod", "GOFLAGS": "-modcacherw"}
            before = dict(user.environment)
            user.environment |= caches
            try:
                first = timed(user, *words)
                user.wharf("down", "--target", "cluster", seconds=600)
            finally:
                user.environment = before
    warm = timed(user, *words)
    again = timed(user, *words)
    runs = [("cold", first), ("warm", warm), ("again", again)]
    shown = [(name, run) for name, run in runs if run]
    names = list(dict.fromkeys(name for _, run in shown for name in run.steps))
    head = f"| step, seconds | {' | '.join(name for name, _ in shown)} |\n|---|{'---:|' * len(shown)}"

    def row(name: str, cells: list[float | None]) -> str:
        return f"| {name} | {' | '.join('' if cell is None else f'{cell:.1f}' for cell in cells)} |"

    rows = [row(name, [run.steps.get(name) for _, run in shown]) for name in names]
    rows.append(row(f"**`wharf up`, provider {chosen}**", [run.whole for _, run in shown]))
    return "\n".join([f"### Bring-up on {os.cpu_count()} cores", "", head, *rows, ""])
