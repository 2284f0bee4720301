"""How the commands find the cluster of this workspace: written down by `wharf up --target cluster`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ci.errors import Mistake, Unavailable
from ci.workspace import Workspace

_PART = "cluster"


@dataclass(frozen=True)
class Access:
    """Where the cluster is, and what it calls the things that it shares with this machine."""

    provider: str  # node, kind or existing
    kubeconfig: Path  # absolute
    context: str
    registry: str  # its name in image references, such as wharf.local
    push: str  # host:port, or host/path, that this machine pushes to for `registry`
    origin: str | None  # the bare origin as the nodes see it; None: Argo CD reads a git URL


def load(workspace: Workspace) -> Access | None:
    """Return the cluster of this workspace, None on the local target.

    A record that this release did not write is none: `make cluster` then writes it anew.
    """
    try:
        known = json.loads((workspace.state / "platform.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    raw: Any = known.get(_PART) if isinstance(known, dict) else None
    if not isinstance(raw, dict) or set(raw) != {field.name for field in fields(Access)}:
        return None
    facts: dict[str, Any] = dict(raw)
    facts["kubeconfig"] = Path(str(facts["kubeconfig"]))
    return Access(**facts)


def require(workspace: Workspace) -> Access:
    """Return the cluster of this workspace; raises Unavailable where there is none."""
    found = load(workspace)
    if found is None:
        raise Unavailable("this checkout runs on no cluster", tip="bring one up with `make cluster`")
    return found


def save(workspace: Workspace, access: Access) -> None:
    """Make `access` the cluster of this workspace; raises Mistake when its kubeconfig has no absolute path."""
    from ci.local import platform

    if not access.kubeconfig.is_absolute():
        raise Mistake(f"{access.kubeconfig}: the path of a kubeconfig must be absolute: commands run from anywhere")
    platform.record(workspace, _PART, {**asdict(access), "kubeconfig": str(access.kubeconfig)})


def forget(workspace: Workspace) -> None:
    """Make this workspace one without a cluster; the cluster itself stays as it is."""
    from ci.local import platform

    if (workspace.state / "platform.json").is_file():
        platform.record(workspace, _PART, None)
