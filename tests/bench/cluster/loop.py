"""A push until the new version answers, rolling updates under load, and what a second version sends."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.cluster.kube import Kube
from ci.console import say
from ci.git import gitcommit
from ci.images.registry import Registry
from ci.release import path_of
from ci.shell import git
from tests.bench.cluster import watcher
from tests.bench.cluster.figures import Figure, median_and_worst, size, text
from tests.cluster import traffic
from tests.cluster.cluster import NEW, OLD, Cluster, body, is_ready

ROUNDS, UPDATES, RATE = 10, 3, 100
_LOOK_S = 0.1
_LONGEST_S = 180.0
STAGES = {
    "push": "push: the hook's validation, and Argo CD told",
    "synced": "Argo CD compares and applies",
    "scheduled": "pod made and scheduled",
    "started": "image there, container started",
    "ready": "model loaded, pod Ready",
    "answered": "Service leads to it",
}


def ship_two(cluster: Cluster) -> str:
    """Bring tumor's first version through dev to staging, then its second into dev; return the image's table."""
    user = cluster.user
    for word in ("train", "gate", "register"):
        user.wharf(word, "tumor")
    sent = json.loads(user.wharf("build", "tumor", "--version", str(OLD), "--json"))
    _release(cluster, "dev", OLD)
    _release(cluster, "staging", OLD)
    if "C: 0.3" in cluster.read("models/tumor/model.yaml"):  # not so in a clone that was kept
        cluster.change_model("C: 0.3", "C: 0.5")
    for word in ("train", "gate", "register"):
        user.wharf(word, "tumor")
    begun = time.monotonic()
    second = json.loads(user.wharf("build", "tumor", "--version", str(NEW), "--json"))
    took = time.monotonic() - begun
    _release(cluster, "dev", NEW)
    _release(cluster, "staging", NEW)
    whole = _size_of(Registry(cluster.access.push), second["image"])
    share = f"1/{whole / second['pushed']:,.0f} of the image" if second["pushed"] else ""
    return text(
        "A second version of a model",
        [
            Figure("sent to the registry", size(second["pushed"]), "kilobytes", share),
            Figure("seconds to pack and send", f"{second['push_s']:.2f} s"),
            Figure("`wharf build` in all", f"{took:.1f} s"),
            Figure(
                "the first version, its dependencies being there", f"{size(sent['pushed'])}, {sent['push_s']:.2f} s"
            ),
            Figure("the whole image", size(whole)),
        ],
    )


def _size_of(registry: Registry, image: str) -> int:
    """Return the bytes of all that an image is made of, as they are stored."""
    name, _, digest = image.rpartition("/")[2].partition("@")
    content = registry.manifest(name, digest).content
    return sum(int(part["size"]) for part in (content["config"], *content["layers"]))


def _release(cluster: Cluster, environment: str, version: int) -> None:
    if cluster.released(environment) != version:
        cluster.user.wharf("promote", "tumor", "--to", environment, "--version", str(version))
    cluster.wait_live(environment, version)


# -- a push ------------------------------------------------------------------------------------------------------------


def pushes(cluster: Cluster, rounds: int = ROUNDS) -> str:
    """Switch dev between two versions by pushes; return the table."""
    states = {version: _state(cluster, version) for version in (OLD, NEW)}
    found: list[dict[str, float]] = []
    with Watch(cluster) as watch:
        for turn in range(rounds):
            version = OLD if turn % 2 == 0 else NEW
            found.append(_push(cluster, watch, version, states[version]))
            say(f"    push {turn + 1} of {rounds}: {sum(found[-1].values()):.1f} s")
            cluster.wait_live("dev", version)
    whole = [sum(each.values()) for each in found]
    rows = [Figure("**push → answer**", median_and_worst(whole), "p50 under 15 s")]
    for name, title in STAGES.items():
        rows.append(Figure(title, median_and_worst([each[name] for each in found])))
    return text(f"From the push until the new version answers through the Service, {rounds} times", rows)


def _state(cluster: Cluster, version: int) -> dict[str, str | None]:
    """Return the release of `version` in dev and its manifests, as the history of the origin has them."""
    origin, path = cluster.origin, path_of("dev", "tumor")
    trailer = f"^Wharf-Release: dev/tumor@{version}$"
    commit = git(origin, "log", "-1", "--format=%H", f"--grep={trailer}", "refs/heads/main", "--", path)
    paths = [path, *gitcommit.files(origin, commit, "gitops/rendered/dev/tumor")]
    return dict(zip(paths, gitcommit.read_all(origin, [(commit, each) for each in paths]), strict=True))


def _push(cluster: Cluster, watch: Watch, version: int, files: Mapping[str, str | None]) -> dict[str, float]:
    """Push a release as `promote` does; return the seconds of each stage."""
    clone = cluster.user.clone
    git(clone, "fetch", "--quiet", "wharf", "main")
    message = f"Release version {version} of tumor to dev\n\nWharf-Release: dev/tumor@{version}\n"
    commit = gitcommit.commit(clone, "FETCH_HEAD", files, message, gitcommit.local_identity(clone))
    assert commit, f"version {version} is released already"
    known = {pod["metadata"]["uid"] for pod in cluster.pods("dev", living=False)}
    at = {"begun": time.time()}
    cluster.user.git("push", "--quiet", "wharf", f"{commit}:refs/heads/main")
    at["push"] = time.time()
    while not {"synced", "ready"} <= set(at):
        assert time.time() - at["begun"] < _LONGEST_S, f"version {version}: {at}"
        _look(cluster, commit, version, known, at)
        time.sleep(_LOOK_S)
    at["answered"] = watch.first(version, at["begun"])
    return stages(at)


def stages(at: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each stage from the times at which they were over, with the sum of all unchanged."""
    marks = [at["begun"]]
    for name in STAGES:  # a stage that was over when the one before it was seen took no time of its own
        marks.append(max(at[name], marks[-1]))
    return {name: later - earlier for name, earlier, later in zip(STAGES, marks, marks[1:], strict=False)}


def _look(cluster: Cluster, commit: str, version: int, known: set[str], at: dict[str, float]) -> None:
    """Note the time of each stage that is over now and was not before."""

    def note(name: str, over: object) -> None:
        if over and name not in at:
            at[name] = time.time()

    if "synced" not in at:
        status = cluster.application("dev").get("status") or {}
        last = status.get("operationState") or {}
        applied = (last.get("syncResult") or {}).get("revision") == commit and last.get("phase") == "Succeeded"
        note("synced", applied)
    for pod in cluster.pods("dev"):
        of_version = pod["metadata"]["labels"].get("app.kubernetes.io/version") == str(version)
        if of_version and pod["metadata"]["uid"] not in known:
            note("scheduled", pod["spec"].get("nodeName"))
            states = [each.get("state") or {} for each in pod["status"].get("containerStatuses") or []]
            note("started", any("running" in state for state in states))
            note("ready", is_ready(pod))


@dataclass
class Watch(AbstractContextManager["Watch"]):
    """A pod in dev that notes when which version answers."""

    cluster: Cluster
    name: str = "bench-watch"

    @property
    def _kube(self) -> Kube:
        return self.cluster.kube

    @property
    def _namespace(self) -> str:
        return self.cluster.namespace("dev")

    def __enter__(self) -> Watch:
        url = f"http://tumor.{self._namespace}.svc.cluster.local/predict"
        made: dict[str, Any] = traffic.pod(self.name, self._namespace, self.cluster.image, [url], body(1))
        made["spec"]["containers"][0]["command"] = ["python3", "-u", "-c", Path(watcher.__file__).read_text(), url]
        self._kube.delete("v1/Pod", self.name, self._namespace, wait_s=60)
        self._kube.apply([traffic.network_policy(self._namespace), made])
        assert self._kube.wait(self._answers, 60), f"{url} does not answer a pod of its namespace"
        return self

    def __exit__(self, *_: object) -> None:
        self._kube.delete("v1/Pod", self.name, self._namespace)

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._kube.logs(self.name, self._namespace, tail=2000)]

    def _answers(self) -> bool:
        pod = self._kube.get("v1/Pod", self.name, self._namespace)
        return bool(pod and is_ready(pod) and any(line["version"].isdigit() for line in self._lines()))

    def first(self, version: int, since: float) -> float:
        """Return when `version` answered first after `since`."""
        found = self._kube.wait(
            lambda: [line["at"] for line in self._lines() if line["version"] == str(version) and line["at"] > since],
            60,
            0.2,
        )
        assert found, f"version {version} did not answer"
        return float(found[0])


# -- rolling updates ---------------------------------------------------------------------------------------------------


def rolling(cluster: Cluster, updates: int = UPDATES, rate: float = RATE) -> str:
    """Send requests to staging, which has two replicas, while it is updated again and again; return the table."""
    took: list[float] = []
    with cluster.traffic("staging", rate=rate) as load:
        for turn in range(updates):
            version = OLD if turn % 2 == 0 else NEW
            begun = time.monotonic()
            cluster.user.wharf("promote", "tumor", "--to", "staging", "--version", str(version))
            cluster.wait_live("staging", version)
            load.wait_for_version(version, 60)
            took.append(time.monotonic() - begun)
            say(f"    update {turn + 1} of {updates}: {took[-1]:.1f} s")
        counts = load.counts()
    for fault in counts.faults:
        say(f"    {fault}")
    rows = [
        Figure("**requests lost**", f"{counts.failed} of {counts.failed + counts.ok:,}", "0"),
        Figure("requests a second that were answered", f"{counts.ok / counts.seconds:.0f}", str(int(rate))),
        Figure("longest time without an answer", f"{counts.longest_gap_s:.2f} s"),
        Figure("an update, until the new version alone answers", f"{statistics.median(took):.1f} s"),
    ]
    return text(f"Two replicas, {rate:g} requests a second over {updates} rolling updates", rows)
