"""`wharf ship MODEL`: the chain from training to the first environment in one command.

Every step knows when there is nothing to do, so a chain that was cut off is finished by running it again.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ci.cluster import access
from ci.console import step
from ci.local.platform import wait_healthy
from ci.status import agent_fault
from ci.workspace import Workspace

if TYPE_CHECKING:
    import pandas as pd

    from ci.gating.evidence import Evidence
    from ci.promote import Promotion


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of a directory under models/")
    parser.add_argument("--data", type=Path, help="use this file instead of the source in model.yaml")
    parser.add_argument("--json", action="store_true", help="print the promotion as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    promotion = ship(workspace, options.model, data=options.data)
    watched = access.load(workspace) or not agent_fault(workspace)  # else nobody would ever say that it serves
    if promotion.branch == "main" and watched:
        with step(f"serve {promotion.model} in {promotion.environment}") as shown:
            shown.note = wait_healthy(workspace, promotion.model, promotion.environment, promotion.version)
    print(json.dumps(asdict(promotion), default=str) if options.json else promotion.summary)
    return 0


@dataclass(frozen=True)
class Made:
    """A version that can be promoted, and what it came from."""

    run: str  # MLflow run id
    evidence: Evidence
    version: int


def ship(workspace: Workspace, name: str, data: Path | None = None) -> Promotion:
    """Train, gate, register and build `name`, then promote that version to the first environment.

    Raises what the steps raise: Mistake, Refusal (the gate or the origin said no), Unavailable.
    """
    from ci.environments import load_all
    from ci.promote import promote

    made = make_version(workspace, name, data=data)
    first = load_all(workspace.root)[0].name
    with step(f"promote {name} to {first}") as shown:
        promotion = promote(workspace, name, first, version=made.version)
        shown.note = promotion.summary
    return promotion


def make_version(
    workspace: Workspace, name: str, *, data: Path | None = None, newer: pd.DataFrame | None = None
) -> Made:
    """Train (on `newer` rows too, where given), gate, register and build `name`."""
    from ci.build import build
    from ci.gate import gate
    from ci.registry import register
    from ci.train import train

    with step(f"train {name}") as shown:
        run = train(workspace, name, data=data, newer=newer)
        shown.note = f"run {run.run_id[:8]}{' (already there)' if run.reused else ''}"
    with step(f"gate {name}") as shown:
        evidence = gate(workspace, name, run.run_id)
        shown.note = evidence.verdict
    with step(f"register {name}") as shown:
        version = register(workspace, name, run.run_id)
        shown.note = f"version {version}"
    with step(f"build {name}") as shown:
        bento = build(workspace, name, version)
        shown.note = f"{bento.tag}{'' if bento.built else ' (already there)'}"
    return Made(run.run_id, evidence, version)
