"""Traffic from inside of the cluster: a pod that calls a model through its Service and counts what is lost."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.cluster.kube import Kube, Rejected
from ci.errors import Unavailable
from infra.platform.tenants import NEEDS_DNS

SCRIPT = Path(__file__).with_name("load_script.py")
USER = 1034
_LABEL = {"app.kubernetes.io/name": "test-traffic"}
_START_S = 60.0
_AWAY_S = 120.0  # that the API server may be gone while the log is asked for


@dataclass(frozen=True)
class Counts:
    """What became of all requests so far."""

    seconds: float
    ok: int
    failed: int
    opened: int  # connections
    longest_gap_s: float  # between two answers
    versions: dict[str, int]
    faults: list[str] = field(default_factory=list[str])

    def require_no_loss(self) -> None:
        """Raise AssertionError when a request failed, or when there were none."""
        assert self.ok, "no request was answered"
        assert self.failed == 0, "\n".join([f"{self.failed} of {self.failed + self.ok} requests failed:", *self.faults])


class Traffic:
    """A pod that sends `rate` requests a second to `http://SERVICE.NAMESPACE/predict` while the block runs.

    What it counted is asked for inside of the block.
    """

    name = "test-traffic"

    def __init__(
        self, kube: Kube, image: str, namespace: str, service: str, body: str, rate: float, starts: bool = True
    ) -> None:
        self.kube, self.namespace, self.starts = kube, namespace, starts
        self.url = f"http://{service}.{namespace}.svc.cluster.local/predict"
        self._objects = [network_policy(namespace), pod(self.name, namespace, image, [self.url, str(rate)], body)]

    def __enter__(self) -> Traffic:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the pod and wait for the first answers."""
        self.kube.delete("v1/Pod", self.name, self.namespace, wait_s=30)
        self.kube.apply(self._objects)
        found = self.kube.wait(self._last, _START_S)
        assert found and (found.ok or not self.starts), f"{self.url} does not answer a pod of its namespace: {found}"

    def stop(self) -> None:
        # A test that broke the API server says so by itself, and the next start deletes the pod.
        with contextlib.suppress(Unavailable):
            self.kube.delete("v1/Pod", self.name, self.namespace)

    def counts(self) -> Counts:
        """Return what became of everything that was sent before this call."""
        before = self._asked()
        enough = self.kube.wait(lambda: (now := self._asked()).seconds >= before.seconds + 1.5 and now, _AWAY_S, 0.5)
        assert enough, f"{self.name} in {self.namespace} writes nothing any more"
        return enough

    def wait_for_version(self, version: int, seconds: float) -> float:
        """Wait until `version` alone answers; return the seconds that it took."""
        begun = time.monotonic()
        while time.monotonic() - begun < seconds:
            before = self._asked().versions
            time.sleep(1.5)
            after = self._asked().versions
            grown = {name for name, count in after.items() if count > before.get(name, 0)}
            if grown == {str(version)}:
                return time.monotonic() - begun
        raise AssertionError(f"{self.url}: not version {version} alone after {seconds:g} s: {self._asked()}")

    def wait_for_first(self, version: int, seconds: float, begun: float) -> float:
        """Wait for the first new answer of `version`; return the seconds since `begun`, which may be `seconds`."""
        before = self._asked().versions.get(str(version), 0)
        while (took := time.monotonic() - begun) < seconds:
            if self._asked().versions.get(str(version), 0) > before:
                return took
            time.sleep(0.3)
        raise AssertionError(f"{self.url}: no answer of version {version} after {seconds:g} s: {self._asked()}")

    def _asked(self) -> Counts:
        found = self.kube.wait(self._last, _AWAY_S, 0.5)
        assert found, f"the log of {self.name} in {self.namespace} is empty"
        return found

    def _last(self) -> Counts | None:
        try:
            lines = list(self.kube.logs(self.name, self.namespace, tail=1))
            return Counts(**json.loads(lines[-1])) if lines else None
        except (Rejected, ValueError):
            return None  # not started yet, or in the middle of a line


def pod(name: str, namespace: str, image: str, arguments: list[str], body: str) -> dict[str, Any]:
    """Return the pod: restricted, and ended at once when it is deleted."""
    resources = {"cpu": "20m", "memory": "64Mi", "ephemeral-storage": "32Mi"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {**_LABEL, **NEEDS_DNS}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": "traffic",
                    "image": image,
                    "command": ["python3", "-u", "-c", SCRIPT.read_text(), *arguments],
                    "env": [{"name": "BODY", "value": body}],
                    "resources": {"requests": resources, "limits": {**resources, "cpu": "500m", "memory": "128Mi"}},
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }


def network_policy(namespace: str) -> dict[str, Any]:
    """Return what lets the pod out of a namespace that denies everything: to the pods of this namespace."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "test-traffic", "namespace": namespace, "labels": _LABEL},
        "spec": {
            "podSelector": {"matchLabels": _LABEL},
            "policyTypes": ["Egress"],
            "egress": [{"to": [{"podSelector": {}}]}],
        },
    }
