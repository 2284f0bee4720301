"""The other shape: one Application for all models of a team in an environment, instead of one for each model.

It is not ours (docs/adr/0006-argocd-at-scale.md). To measure it, manifests lie in `gitops/rendered/dev/TEAM/MODEL/` and
the ApplicationSet reads the folders below; such commits go around the origin's check, which would refuse them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from ci.cluster import refresh
from ci.console import say
from ci.shell import git
from infra.platform.argocd import NAMESPACE
from tests.bench.cluster.figures import Figure, median_and_worst, text
from tests.bench.cluster.generated import FIRST, Releases, team_of
from tests.bench.cluster.releases import CHANGES, is_live, remove, wait_synced
from tests.cluster.cluster import Cluster

_SET = f"gitops/appsets/{FIRST}.yaml"
_PATH = '        path: "{{ .path.path }}"\n'


def measure(cluster: Cluster, releases: Releases) -> str:
    """Release the models in one commit, and change one, by Applications of teams; return the table."""
    models = releases.models
    if any((releases.root / "gitops/releases" / FIRST).glob("*.yaml")):
        remove(cluster, releases, models)
    _read_below(cluster, releases)
    teams = sorted({team_of(name) for name in models})
    releases.write(models, 1, commit=False)
    _into_teams(releases, models)
    begun = time.monotonic()
    commit = _deliver(cluster, releases, f"{len(models)} releases by team")
    at = wait_synced(cluster, {f"{team}-{FIRST}" for team in teams}, commit, begun)
    say(f"    {len(models)} releases in {len(teams)} Applications: {at['synced']:.0f} s")
    changes: list[float] = []
    for model in [models[len(models) * turn // CHANGES] for turn in range(CHANGES)]:
        releases.write([model], 2, commit=False)
        _into_teams(releases, models)
        begun = time.monotonic()
        commit = _deliver(cluster, releases, f"One release of {team_of(model)}")
        while not is_live(cluster.kube, f"{team_of(model)}-{FIRST}", model, commit):
            time.sleep(0.1)
        changes.append(time.monotonic() - begun)
        say(f"    one of {len(models)}: {changes[-1]:.1f} s")
    return text(
        f"{len(models):,} releases as {len(teams)} Applications, one for each team",
        [
            Figure("all Synced (no validation in the push)", f"{at['synced']:.0f} s"),
            Figure("one changed release → Synced (no validation in the push)", median_and_worst(changes)),
        ],
    )


def _read_below(cluster: Cluster, releases: Releases) -> None:
    """Let the environment's ApplicationSet take all folders below the one that it finds."""
    path = releases.root / _SET
    content = path.read_text()
    assert content.count(_PATH) == 1
    path.write_text(content.replace(_PATH, f"{_PATH}        directory: {{recurse: true}}\n"))
    _deliver(cluster, releases, "Applications by team")

    def done() -> bool:
        found = cluster.kube.get("argoproj.io/v1alpha1/ApplicationSet", FIRST, NAMESPACE) or {}
        return "directory" in found["spec"]["template"]["spec"]["source"]

    cluster.wait("the ApplicationSet reads the folders below", done, 180)


def _into_teams(releases: Releases, models: Sequence[str]) -> None:
    folder = releases.root / "gitops/rendered" / FIRST
    for team in folder.glob("team*"):
        shutil.rmtree(team)
    for name in models:
        target = folder / team_of(name) / name
        target.parent.mkdir(exist_ok=True)
        (folder / name).rename(target)


def _deliver(cluster: Cluster, releases: Releases, message: str) -> str:
    """Commit, and move the origin's main there as a push does, without its check; return the commit."""
    releases.user.git("add", "--all", "gitops")
    releases.user.git("commit", "--quiet", "--message", message)
    commit, before = releases.user.git("rev-parse", "HEAD"), cluster.main
    git(cluster.origin, "fetch", "--quiet", str(releases.root), "HEAD")
    git(cluster.origin, "update-ref", "refs/heads/main", commit, before)
    said = refresh.after_push(cluster.workspace, cluster.origin, before, commit)
    assert said.startswith("Argo CD was told"), said
    return commit
