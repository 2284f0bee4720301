"""Ask Argo CD to look again where what it last said cannot be the newest.

A push tells it once (`ci/cluster/refresh.py`). When its repo server does not run at that moment, or its controller
dies while a rollout ends, it looks again at its next poll only, minutes later. So whoever looks at the status asks:
it costs one small request for each release that is not well, and nothing where everything is.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Mapping
from typing import Any

from ci.cluster.kube import Kube
from ci.cluster.pods import seconds
from ci.cluster.refresh import Touched, refresh
from ci.cluster.wanted import Key
from ci.errors import WharfError

Json = Mapping[str, Any]

RECENT_S = 5.0  # Argo CD is given so long before it is asked again
_MOST = 20  # of so many at a time: an outage is no reason for a thousand requests


def nudge(
    kube: Kube,
    namespace: str,
    applications: Mapping[Key, Json],
    deployments: Mapping[Key, Json],
    behind: Collection[Key],
    without: Collection[Key],
) -> Touched:
    """Ask again about releases that are `behind` git, `without` an Application, or Progressing though rolled out.

    Returns what was asked about. Who may only look only looks: a refusal is no fault.
    """
    asked = Touched()
    for key, app in applications.items():
        done = _health(app) == "Progressing" and _rolled_out(deployments.get(key))
        if (key in behind or done) and not _asked(app) and time.time() - _looked(app) > RECENT_S:
            asked.applications.add(str(app["metadata"]["name"]))
    asked.sets = {environment for _, environment in without}
    asked.applications = set(sorted(asked.applications)[:_MOST])
    with contextlib.suppress(WharfError):
        refresh(kube, namespace, asked)
    return asked


def _health(app: Json) -> str:
    return str(((app.get("status") or {}).get("health") or {}).get("status", ""))


def _looked(app: Json) -> float:
    return seconds((app.get("status") or {}).get("reconciledAt"))


def _asked(app: Json) -> bool:
    return "argocd.argoproj.io/refresh" in (app["metadata"].get("annotations") or {})


def _rolled_out(deployment: Json | None) -> bool:
    if deployment is None:
        return False
    status: Json = deployment.get("status") or {}
    wanted = int((deployment.get("spec") or {}).get("replicas", 1))
    seen = int(status.get("observedGeneration", 0)) >= int(deployment["metadata"].get("generation", 0))
    counts = [int(status.get(name, 0)) for name in ("replicas", "updatedReplicas", "availableReplicas")]
    return seen and counts == [wanted] * 3
