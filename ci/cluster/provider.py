"""The providers of a cluster behind one small interface, and which of them is used."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ci.cluster import access
from ci.cluster.access import Access
from ci.errors import Mistake, Unavailable, did_you_mean
from ci.workspace import Workspace

NAMES = ("kind", "node", "existing")


class Provider(Protocol):
    """Where a cluster comes from. Everything above it, from images to commands, is the same for all of them."""

    @property
    def name(self) -> str: ...

    def missing(self) -> str | None:
        """Say in one line why this provider cannot be used here; None when it can."""
        ...

    def up(self, workspace: Workspace) -> Access:
        """Bring the cluster up, or repair what it lacks; safe to repeat. Raises WharfError."""
        ...

    def down(self, workspace: Workspace) -> list[str]:
        """Remove what `up` made and nothing else; return it in words."""
        ...


def named(name: str, *, context: str | None = None, agreed: bool = False, path: Path | None = None) -> Provider:
    """Return the provider called `name`; `context`, `agreed` and `path` are for `existing`. Raises Mistake."""
    if name == "node":
        from ci.cluster.node.provider import Node

        return Node()
    if name == "kind":
        from ci.cluster.kind import Kind

        return Kind()
    if name == "existing":
        from ci.cluster.existing import Existing

        return Existing(context, agreed, path)
    raise Mistake(
        f"--provider: there is no provider '{name}'{did_you_mean(name, NAMES)}", tip=f"one of {', '.join(NAMES)}"
    )


def choose(
    workspace: Workspace, wanted: str | None = None, *, context: str | None = None, agreed: bool = False
) -> Provider:
    """Return the provider to use: `wanted`, else the one that this workspace uses, else the first that is possible.

    `existing` is never chosen by itself: it would touch a cluster that somebody else may use. A given `context` means
    it. Raises Mistake (no such provider), Unavailable (it cannot be used here, one line for each that was tried).
    """
    known = access.load(workspace)
    path: Path | None = None
    if wanted is None and context is not None:
        wanted = "existing"
    if wanted is None and known is not None:
        wanted, context, path = known.provider, known.context, known.kubeconfig
    names = [wanted] if wanted else ["kind", "node"]
    reasons: list[str] = []
    for name in names:
        provider = named(name, context=context, agreed=agreed, path=path)
        reason = provider.missing()
        if reason is None:
            return provider
        reasons.append(f"{name}: {reason}")
    raise Unavailable(
        reasons,
        tip="install kind and Docker or Podman, or name a cluster that you have: "
        "`wharf up --target cluster --provider existing --context NAME`",
    )
