"""The tests on a real cluster: one clone, one bring-up from nothing, and everything on it in one process.

`make test-cluster` runs them. `pytest tests/cluster --clone FOLDER` keeps the clone and its cluster in FOLDER for
whoever repeats a test: the next run with the same FOLDER finds them, repairs what is missing, and starts in seconds.

`cluster`  the cluster (tests/cluster/cluster.py), with the platform on it and no model
`tumor`    the same with two versions of the model tumor: the old one in staging and prod, the new one in dev
"""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from ci.cluster import access, kube, provider
from ci.errors import Unavailable, WharfError
from ci.images import base
from ci.workspace import Workspace
from tests.cluster.cluster import NEW, OLD, Cluster
from tests.cluster.dump import dump
from tests.e2e.newcomer import User, newcomer

# Builds everything that the caches lack: the Kubernetes and Argo programs, the base image, the dependencies' layer.
BRING_UP_S = 3600
TEST_S = 400
_ORDER = ["test_node", "test_kube", "test_loop", "test_faults", "test_chaos", "test_races", "test_jobs"]
_CLUSTER = pytest.StashKey[Cluster]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clone", metavar="FOLDER", help="keep the clone and its cluster here for the next run")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The story first, then what disturbs it; the bring-up is no part of the first test's time."""
    mine = [item for item in items if item.get_closest_marker("cluster")]
    for item in mine:
        if item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_S, func_only=True))
    places = {item: place for place, item in enumerate(items)}
    mine.sort(key=lambda item: (_place(item), places[item]))
    items[:] = [item for item in items if item not in mine] + mine


def _place(item: pytest.Item) -> int:
    name = item.path.stem
    return _ORDER.index(name) if name in _ORDER else len(_ORDER)


@pytest.fixture(scope="session")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster that was brought up from nothing by `wharf up`; skips where no provider can run."""
    kept = request.config.getoption("--clone", default=None)
    folder = Path(kept).absolute() if kept else Path(tempfile.mkdtemp(prefix="wharf-"))
    user = User(folder / "modelwharf")
    try:
        if not user.clone.is_dir():
            newcomer(user.clone)
            fit_two_cores(user)
        try:
            chosen = provider.choose(Workspace(user.clone)).name
        except Unavailable as error:
            pytest.skip(f"no provider of a cluster can run here: {'; '.join(error.lines)}")
        try:
            found = bring_up(user, chosen)
            request.config.stash[_CLUSTER] = found
            yield found
        finally:
            if not kept:
                user.wharf("down", "--target", "cluster", "--clean", seconds=600)
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)


def bring_up(user: User, chosen: str) -> Cluster:
    """Run `wharf up` and return the cluster; prints what the cluster says when it fails."""
    begun = time.monotonic()
    try:
        user.wharf("up", "--target", "cluster", "--provider", chosen, "--platform-only", seconds=BRING_UP_S)
    except BaseException:
        if known := access.load(Workspace(user.clone)):
            print(dump(kube.connect(known), known.provider))
        raise
    took = time.monotonic() - begun
    known = access.require(Workspace(user.clone))
    found = Cluster(user, known, kube.connect(known), base.ensure(known))
    found.record(f"bring-up ({chosen}), with what the caches lacked", took)
    return found


def fit_two_cores(user: User) -> None:
    """Let every environment of the clone have the fewest replicas that still show what it has to: a small machine."""
    for name, replicas, disruption in (
        ("dev", "{min: 1, max: 2}", "{max_unavailable: 1}"),
        ("staging", "{min: 2, max: 2}", "{max_unavailable: 1}"),
        ("prod", "{min: 2, max: 2}", "{min_available: 1}"),
    ):
        settings = user.clone / f"gitops/environments/{name}.yaml"
        text = _replaced(settings.read_text(), r"^replicas: .*$", f"replicas: {replicas}")
        settings.write_text(_replaced(text, r"^pod_disruption: .*$", f"pod_disruption: {disruption}"))
    user.wharf("render")
    user.git("add", "--all")
    user.git("commit", "--quiet", "--message", "Fit a small machine")


def _replaced(text: str, pattern: str, by: str) -> str:
    changed, count = re.subn(pattern, by, text, flags=re.MULTILINE)
    assert count == 1, f"{pattern} stands {count} times in the settings, not once"
    return changed


@pytest.fixture(scope="session")
def tumor(cluster: Cluster) -> Cluster:
    """The cluster with the old version of tumor in staging and prod, the new one in dev; made unless it is there."""
    user = cluster.user
    if cluster.released("dev") is None:
        user.wharf("ship", "tumor")
    for environment in ("staging", "prod"):
        if cluster.released(environment) is None:
            user.wharf("promote", "tumor", "--to", environment, "--version", str(OLD))
    if cluster.change_model("C: 0.3", "C: 0.5"):
        begun = time.monotonic()
        user.wharf("ship", "tumor")
        cluster.record("ship a second version of tumor", time.monotonic() - begun)
    for environment, version in (("dev", NEW), ("staging", OLD), ("prod", OLD)):
        if cluster.released(environment) != version:
            user.wharf("promote", "tumor", "--to", environment, "--version", str(version))
        cluster.wait_live(environment, version)
    return cluster


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add what the cluster says to the report of a test that failed on it."""
    report = yield
    found = item.config.stash.get(_CLUSTER, None)
    if report.failed and found and item.get_closest_marker("cluster"):
        try:
            report.sections.append(("cluster", dump(found.kube, found.access.provider)))
        except WharfError as error:
            report.sections.append(("cluster", f"cannot be asked: {error}"))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was measured on the way."""
    found = config.stash.get(_CLUSTER, None)
    if found and found.figures:
        terminalreporter.section("seconds on the cluster")
        for what, seconds in found.figures.items():
            terminalreporter.write_line(f"{seconds:8.1f}  {what}")
