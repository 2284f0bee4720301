"""Many releases in one commit until all are Synced, and one changed release among them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ci.cluster.kube import Kube
from ci.console import say
from ci.withdraw import withdraw
from ci.workspace import Workspace
from infra.platform.argocd import NAMESPACE, Tuning
from tests.bench.cluster.figures import Figure, median_and_worst, text, times
from tests.bench.cluster.generated import FIRST, Releases, cpu_seconds, registry, team_of, used, write_models
from tests.bench.cluster.tuning import OURS, PLAIN, use
from tests.cluster.cluster import Cluster
from tests.e2e.newcomer import User

APPLICATION = "argoproj.io/v1alpha1/Application"
CHANGES = 5
_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"
_LOOK_S, _LONGEST_S = 2.0, 1800.0


@dataclass(frozen=True)
class Arrival:
    """How releases of one commit became objects: seconds from the beginning of its push."""

    pushed: float
    applications: float
    half: float
    synced: float
    used: str  # processor seconds by program, where the cluster is this machine

    def __str__(self) -> str:
        return (
            f"pushed {self.pushed:.0f} s, Applications {self.applications:.0f} s, half {self.half:.0f} s, "
            f"Synced {self.synced:.0f} s ({self.used or 'processors not looked at'})"
        )


@contextmanager
def ready(
    user: User, connect: Callable[[], Cluster], chosen: str, models: list[str]
) -> Generator[tuple[Cluster, Releases]]:
    """Give a cluster with the namespaces of generated models and nothing released, and what releases them."""
    with registry(models) as (url, facts):
        made = Releases(user, models, url, facts)
        yield _prepare(made, connect, chosen), made


def measure(cluster: Cluster, releases: Releases, compared: int) -> str:
    """Release `compared` of the models with both settings, then all of them, then change one; return the table."""
    models, few = releases.models, releases.models[:compared]
    rows: list[Figure] = []
    found: dict[str, Arrival] = {}
    for name, tuning in (("plain", PLAIN), ("ours", OURS)) if few else ():
        found[name] = arrive(cluster, releases, few, tuning, name)
        say(f"    {len(few)} releases, {name}: {found[name]}")
        say(f"    removed in {remove(cluster, releases, few):.0f} s")
    if few:
        ratio = times(found["plain"].synced, found["ours"].synced, "plain settings")
        rows.append(
            Figure(
                f"{len(few)} releases, Argo CD's plain settings (the same ApplicationSets)",
                f"{found['plain'].synced:.0f} s",
            )
        )
        rows.append(Figure(f"{len(few)} releases, ours", f"{found['ours'].synced:.0f} s", "", ratio))
    whole = arrive(cluster, releases, models, OURS, "ours")
    say(f"    {len(models)} releases: {whole}")
    changes = change(cluster, releases, models)
    rows += [
        Figure(f"**{len(models):,} releases in one commit → all Synced**", f"{whole.synced:.0f} s", "under 300 s"),
        Figure("the push, with its validation", f"{whole.pushed:.0f} s"),
        Figure("all Applications there", f"{whole.applications:.0f} s"),
        Figure("half of them Synced", f"{whole.half:.0f} s"),
        Figure("**one changed release among them → Synced**", median_and_worst(changes), "under 10 s"),
    ]
    return text(f"{len(models):,} generated releases in {FIRST}, 5 objects each, pods Pending", rows)


def _prepare(releases: Releases, connect: Callable[[], Cluster], chosen: str) -> Cluster:
    """Bring the contracts of the models to the origin and their namespaces to the cluster."""
    user, models = releases.user, releases.models
    is_up = bool(user.git("remote"))
    if is_up:
        _withdraw_all(user, connect())
    write_models(user.clone, models)
    user.wharf("render")
    user.git("add", "--all")
    user.git("commit", "--quiet", "--message", f"{len(models)} generated models")
    if is_up:
        releases.push()
    say(f"    namespaces of {len({team_of(name) for name in models})} teams")
    user.wharf("up", "--target", "cluster", "--provider", chosen, "--platform-only", seconds=3600)
    cluster = connect()
    project = f"{team_of(models[0])}-{FIRST}"
    cluster.wait("the project of the environment allows the teams' namespaces", lambda: _allows(cluster, project), 180)
    return cluster


def _withdraw_all(user: User, cluster: Cluster) -> None:
    """Remove what the parts before this one released, and wait until it is gone: its models go next."""
    user.git("pull", "--quiet", "--no-rebase", "--no-edit", "wharf", "main")
    there = {(path.stem, path.parent.name) for path in (user.clone / "gitops/releases").glob("*/*.yaml")}
    if there:
        withdraw(Workspace(user.clone), there)
        user.git("pull", "--quiet", "--no-rebase", "--no-edit", "wharf", "main")
    gone = lambda: not cluster.kube.list(APPLICATION, NAMESPACE, "modelwharf.io/model")  # noqa: E731
    cluster.wait("nothing is released", gone, 300)


def _allows(cluster: Cluster, namespace: str) -> bool:
    found = cluster.kube.get("argoproj.io/v1alpha1/AppProject", FIRST, NAMESPACE)
    return bool(found) and namespace in {each["namespace"] for each in found["spec"]["destinations"]}


def arrive(cluster: Cluster, releases: Releases, models: Sequence[str], tuning: Tuning, name: str) -> Arrival:
    """Let Argo CD run with `tuning`, release the models in one commit, and wait until all are Synced."""
    use(cluster.kube, tuning, name)
    releases.write(models, 1)
    before, begun = cpu_seconds(), time.monotonic()
    commit = releases.push()
    pushed = time.monotonic() - begun
    at = wait_synced(cluster, {f"{model}-{FIRST}" for model in models}, commit, begun)
    here = cluster.access.provider != "existing"
    return Arrival(pushed=pushed, **at, used=used(before, cpu_seconds()) if here else "")


def wait_synced(cluster: Cluster, wanted: set[str], commit: str, begun: float) -> dict[str, float]:
    """Wait until all Applications are there and Synced with the commit; return when what was so, since `begun`."""
    at: dict[str, float] = {}
    said = 0.0
    while "synced" not in at:
        time.sleep(_LOOK_S)
        there, synced = _count(cluster.kube, wanted, commit)
        now = time.monotonic() - begun
        if now - said >= 20:
            said = now
            say(f"    {now:5.0f} s: {there} Applications, {synced} Synced")
        for mark, over in (
            ("applications", there == len(wanted)),
            ("half", synced >= len(wanted) / 2),
            ("synced", synced == len(wanted)),
        ):
            if over:
                at.setdefault(mark, now)
        assert now < _LONGEST_S, f"{synced} of {len(wanted)} are Synced after {now:.0f} s"
    return at


def _count(kube: Kube, wanted: set[str], commit: str) -> tuple[int, int]:
    """Return how many of the Applications there are, and how many are Synced with the commit.

    As the table that `kubectl get` shows, from the API server's cache: whole, a thousand of them are ten megabytes.
    """
    path = kube._path(APPLICATION, NAMESPACE)
    answer = kube._client.get(path, headers={"Accept": _TABLE}, params={"resourceVersion": "0"}, timeout=60)
    table: dict[str, Any] = answer.raise_for_status().json()
    columns = [column["name"] for column in table["columnDefinitions"]]
    rows = [dict(zip(columns, row["cells"], strict=True)) for row in table["rows"]]
    mine = [row for row in rows if row["Name"] in wanted]
    return len(mine), sum(row["Sync Status"] == "Synced" and row["Revision"] == commit for row in mine)


def remove(cluster: Cluster, releases: Releases, models: Sequence[str], version: int = 1) -> float:
    """Remove the releases in one commit; return the seconds until no Application and no Deployment of them is left."""
    releases.remove(models, version)
    begun = time.monotonic()
    releases.push()
    wanted = {f"{model}-{FIRST}" for model in models}
    while _count(cluster.kube, wanted, "")[0]:
        assert time.monotonic() - begun < _LONGEST_S, "releases that were removed are still there"
        time.sleep(_LOOK_S)
    return time.monotonic() - begun


def change(cluster: Cluster, releases: Releases, models: Sequence[str]) -> list[float]:
    """Change one release among all, a few times; return the seconds from the beginning of each push until Synced."""
    found: list[float] = []
    for model in [models[len(models) * turn // CHANGES] for turn in range(CHANGES)]:
        releases.write([model], 2)
        begun = time.monotonic()
        commit = releases.push()
        pushed = time.monotonic() - begun
        while not is_live(cluster.kube, f"{model}-{FIRST}", model, commit):
            assert time.monotonic() - begun < _LONGEST_S, f"{model} is not Synced"
            time.sleep(0.1)
        found.append(time.monotonic() - begun)
        say(f"    one of {len(models)}: pushed {pushed:.1f} s, Synced {found[-1]:.1f} s")
    say(f"    median {statistics.median(found):.1f} s")
    return found


def is_live(kube: Kube, application: str, model: str, commit: str, version: int = 2) -> bool:
    """Tell whether Argo CD says Synced at this commit, and the model's Deployment is of this version."""
    found = kube.get(APPLICATION, application, NAMESPACE) or {}
    sync = (found.get("status") or {}).get("sync") or {}
    if (sync.get("status"), sync.get("revision")) != ("Synced", commit):
        return False
    deployment = kube.get("apps/v1/Deployment", model, f"{team_of(model)}-{FIRST}")
    return bool(deployment) and deployment["metadata"]["labels"]["app.kubernetes.io/version"] == str(version)
