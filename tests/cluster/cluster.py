"""The cluster as the tests use it: somebody's clone, the Kubernetes API behind it, and what was measured on the way."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ci.cluster import refresh
from ci.cluster.access import Access
from ci.cluster.kube import Kube
from ci.git import gitcommit
from ci.git.gitcommit import Identity
from ci.release import parse, path_of
from ci.shell import git
from ci.workspace import Workspace
from tests.cluster.traffic import Traffic
from tests.e2e.newcomer import User

T = TypeVar("T")

TEAM = "diagnostics"
ENVIRONMENTS = ("dev", "staging", "prod")
OLD, NEW = 1, 2  # the versions that the tests carry
PODS = "app.kubernetes.io/name=tumor"
_SOMEBODY = Identity("Somebody with access to the origin", "somebody@example.invalid")


@dataclass
class Cluster:
    """A clone whose target is a live cluster; `tumor` is the model that the tests carry through it."""

    user: User
    access: Access
    kube: Kube
    image: str  # has python3; what traffic runs in
    figures: dict[str, float] = field(default_factory=dict[str, float])  # seconds by what was measured

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.user.clone)

    @property
    def origin(self) -> Path:
        """The bare repository that Argo CD follows."""
        return self.workspace.state / "origin.git"

    # -- what runs -----------------------------------------------------------------------------------------------------

    @staticmethod
    def namespace(environment: str) -> str:
        return f"{TEAM}-{environment}"

    def pods(self, environment: str, *, living: bool = True) -> list[dict[str, Any]]:
        """Return the pods of tumor; `living`: those that are not going away."""
        found = self.kube.list("v1/Pod", self.namespace(environment), PODS)
        return [pod for pod in found if not (living and pod["metadata"].get("deletionTimestamp"))]

    def ready_pods(self, environment: str) -> list[dict[str, Any]]:
        return [pod for pod in self.pods(environment) if is_ready(pod)]

    def deployment(self, environment: str) -> dict[str, Any]:
        found = self.kube.get("apps/v1/Deployment", "tumor", self.namespace(environment))
        assert found, f"there is no Deployment tumor in {self.namespace(environment)}"
        return found

    def application(self, environment: str) -> dict[str, Any]:
        found = self.kube.get("argoproj.io/v1alpha1/Application", f"tumor-{environment}", "argocd")
        assert found, f"there is no Application tumor-{environment}"
        return found

    def row(self, environment: str) -> dict[str, Any]:
        """Return what `wharf status` says of tumor; an empty mapping where it says nothing."""
        rows = json.loads(self.user.wharf("status", "tumor", "--env", environment, "--json"))
        return rows[0] if rows else {}

    # -- waiting -------------------------------------------------------------------------------------------------------

    def wait(self, what: str, check: Callable[[], T], seconds: float, interval: float = 0.5) -> T:
        """Ask until `check` is true and return what it said; AssertionError names `what` after `seconds`.

        An API server that is away meanwhile is waited for.
        """
        found = self.kube.wait(check, seconds, interval)
        assert found, f"{what}: not within {seconds:g} seconds"
        return found

    def wait_live(self, environment: str, version: int, seconds: float = 150) -> float:
        """Wait until `version` alone runs, Ready, and `wharf status` says Synced and Healthy; return the seconds."""
        begun = time.monotonic()

        def settled() -> bool:
            deployment = self.kube.get("apps/v1/Deployment", "tumor", self.namespace(environment))
            if deployment is None:
                return False
            status, spec = deployment.get("status") or {}, deployment["spec"]
            labels = {pod["metadata"]["labels"]["app.kubernetes.io/version"] for pod in self.pods(environment)}
            return (
                labels == {str(version)}
                and status.get("observedGeneration") == deployment["metadata"]["generation"]
                and status.get("updatedReplicas") == status.get("readyReplicas") == spec["replicas"]
            )

        self.wait(f"version {version} alone in {environment}", settled, seconds)

        shown: dict[str, Any] = {}

        def said() -> bool:
            row = self.row(environment)
            word = {key: row.get(key) for key in ("version", "sync", "health", "message")}
            if word != shown:  # pytest shows it with a failure
                shown.update(word)
                print(f"tumor in {environment} after {time.monotonic() - begun:.1f} s: {word}")
            return (row.get("version"), row.get("sync"), row.get("health")) == (version, "Synced", "Healthy")

        left = seconds - (time.monotonic() - begun)
        self.wait(f"`wharf status`: version {version} Synced and Healthy in {environment}", said, left, 1.0)
        return time.monotonic() - begun

    def evict(self, name: str, namespace: str) -> None:
        """Ask for the eviction of a pod; Unavailable where its disruption budget does not allow it now."""
        path = f"{self.kube._path('v1/Pod', namespace, name)}/eviction"
        eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}}
        self.kube._call("POST", path, what=f"eviction of pod {name}", body=json.dumps(eviction))

    def record(self, what: str, seconds: float) -> None:
        """Keep a figure for the end of the session."""
        self.figures[what] = round(seconds, 1)

    # -- traffic -------------------------------------------------------------------------------------------------------

    def traffic(self, environment: str, rate: float = 20, *, starts: bool = True) -> Traffic:
        """Return traffic to tumor's Service from a pod of its namespace; a context manager.

        `starts`: it fails unless it is answered from the beginning.
        """
        return Traffic(self.kube, self.image, self.namespace(environment), "tumor", body(2), rate, starts)

    # -- git -----------------------------------------------------------------------------------------------------------

    @property
    def main(self) -> str:
        return git(self.origin, "rev-parse", "refs/heads/main")

    def read(self, path: str) -> str:
        """Return a file of the origin's main."""
        text = gitcommit.read(self.origin, "refs/heads/main", path)
        assert text is not None, f"{path} is not in the origin"
        return text

    def released(self, environment: str) -> int | None:
        """Return the version of tumor that the origin's main has in `environment`."""
        text = gitcommit.read(self.origin, "refs/heads/main", path_of(environment, "tumor"))
        return parse(text, "release").version if text else None

    def change_model(self, before: str, after: str) -> bool:
        """Change tumor's contract as its owner does: a commit on top of the origin's main, pushed.

        Tells whether there was something to change: a cluster that was kept may have been through this.
        """
        user, contract = self.user, self.user.clone / "models/tumor/model.yaml"
        user.git("pull", "--quiet", "--no-rebase", "--no-edit", "wharf", "main")
        text = contract.read_text()
        if after in text:
            return False
        assert before in text
        contract.write_text(text.replace(before, after))
        user.git("commit", "--quiet", "--all", "--message", f"Change tumor to {after}")
        user.git("push", "--quiet", "wharf", "HEAD:main")
        return True

    def bypass(self, message: str, changes: Mapping[str, str | None]) -> str:
        """Commit straight into the bare origin, as somebody who goes around its check; return the commit.

        No hook runs for it, so Argo CD is told of it here as the hook would have done.
        """
        before = self.main
        commit = gitcommit.commit(self.origin, before, changes, f"{message}\n", _SOMEBODY)
        assert commit, f"{message}: changes nothing"
        git(self.origin, "update-ref", "refs/heads/main", commit, before)
        said = refresh.after_push(self.workspace, self.origin, before, commit)
        assert said.startswith("Argo CD was told"), said
        return commit

    def restore(self, commit: str, paths: list[str], message: str) -> str:
        """Commit, straight into the bare origin, the `paths` as they were at `commit`."""
        texts = gitcommit.read_all(self.origin, [(commit, path) for path in paths])
        return self.bypass(message, dict(zip(paths, texts, strict=True)))

    def begin(self, *words: str, clone: Path | None = None) -> subprocess.Popen[str]:
        """Start a `wharf` command and return at once."""
        where = clone or self.user.clone
        return subprocess.Popen(
            [sys.executable, "-m", "ci.cli", *words],
            cwd=where,
            env={**self.user.environment, "PYTHONPATH": str(where)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def body(count: int) -> str:
    """Return a request for tumor: the first rows of its data set, which are all malignant."""
    from sklearn.datasets import load_breast_cancer

    return json.dumps({"rows": load_breast_cancer(return_X_y=True)[0][:count].tolist()})
