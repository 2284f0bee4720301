"""What `wharf status` adds on a cluster for somebody who was just woken: the pods behind the table, and what to do."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ci.console import paint, say, table

if TYPE_CHECKING:
    from ci.status import Application

_MOST = 5  # hints: an outage has one cause, not hundreds


def show(found: Sequence[Application], whole: bool) -> None:
    """Print the pods of what is not well (`whole`: of everything) and, to standard error, the next commands."""
    from ci.cluster.argocd import ClusterApplication

    known = [each for each in found if isinstance(each, ClusterApplication)]
    rows = [
        [
            f"{pod.namespace}/{pod.name}",
            pod.version or "-",
            "yes" if pod.ready else "no",
            pod.status,
            pod.restarts,
            age(pod.since),
            pod.node or "-",
            pod.reason,
        ]
        for each in known
        if whole or not each.well
        for pod in each.pods
    ]
    if rows:
        print()
        print(table(["POD", "VERSION", "READY", "STATUS", "RESTARTS", "AGE", "NODE", ""], rows))
    for each in [each for each in known if each.health == "Degraded" or each.sync == "Unknown"][:_MOST]:
        say(f"{paint('TIP', 'yellow', sys.stderr)}    {_hint(each)}")


def _hint(application: Application) -> str:
    where = f"{application.model} --env {application.environment}"
    since = f" for {age(application.since)}" if application.since else ""
    head = f"{application.model} in {application.environment} is {application.health}{since}"
    if application.sync == "Unknown":
        return f"{head}: `wharf logs argocd` says what Argo CD does"
    back = f", `wharf rollback {where}` goes back" if application.health == "Degraded" else ""
    return f"{head}: `wharf logs {where}` shows why{back}"


def age(since: float, now: float | None = None) -> str:
    """Return how long ago `since` (seconds since 1970) is, in the way of kubectl: 45s, 12m, 5h, 3d; `-` for 0."""
    if not since:
        return "-"
    seconds = max(0, int((now or time.time()) - since))
    for unit, length, until in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172800)):
        if seconds < until:
            return f"{seconds // length}{unit}"
    return f"{seconds // 86400}d"
