"""`wharf retrain MODEL`: look at the triggers; when one fires, train on the newer data and propose the challenger.

The chain is monitor → triggers → train → gate → register → build → a proposal for the first environment. It never
deploys. What it is about to do is noted in `.wharf/retrain/` first: after a kill the next call goes on with it, and
every step finds what was already done.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ci.console import paint, say, step
from ci.files import write_atomic
from ci.live.triggers import Seen, Trigger, decide
from ci.monitor import NothingReleased, monitor, parse_since
from ci.workspace import Workspace, load_spec

if TYPE_CHECKING:
    from ci.monitor import DriftReport
    from models.spec import ModelSpec


@dataclass(frozen=True)
class Outcome:
    """What a retraining did; the fields from `rows` on are None or empty when nothing fired."""

    model: str
    environment: str  # whose traffic was looked at
    version: int  # that runs there
    triggers: list[Trigger]
    why: str  # what started it: names of triggers, `--force`, or an interrupted retraining; empty: nothing did
    rows: int | None = None  # labelled rows added to the source
    run: str | None = None
    challenger: int | None = None  # version that is proposed
    proposed_to: str | None = None
    changed: bool = False  # False with a challenger: it was proposed before, or is released there already
    branch: str = ""
    url: str = ""
    against: tuple[str, ...] = ()  # the gate's comparisons with the champion on the same held-out rows, a line each
    summary: str = ""
    next_steps: tuple[str, ...] = ()
    unjudged: tuple[str, ...] = ()  # triggers that look at live traffic, where there is no prediction log


def retrain(
    workspace: Workspace,
    name: str,
    environment: str | None = None,
    *,
    force: bool = False,
    dry_run: bool = False,
    since: float | None = None,
) -> Outcome:
    """Check the triggers of `name` on the traffic of `environment` and, when one fires, propose a challenger.

    `force` goes on without a trigger, `dry_run` stops after showing them, `since` is the window of `monitor`. Raises
    GateRefusal with the gate's lines when the challenger does not pass (nothing is proposed then), and what the steps
    raise.
    """
    spec = load_spec(workspace, name)
    with step(f"monitor {name}") as shown:
        report = monitor(workspace, name, environment, since=since)
        shown.note = f"{report.environment} version {report.version}, {report.rows} rows"
    triggers = decide(spec.retraining, _seen(workspace, spec, report))
    note = workspace.state / "retrain" / f"{report.environment}-{name}.json"
    why = _why(triggers, force, note)
    log = workspace.predictions(report.environment, name)
    unjudged = () if any(log.glob("*.jsonl")) else tuple(t.name for t in triggers if t.name != "schedule")
    if unjudged:
        say(f"  not judged: {', '.join(unjudged)}: no prediction log is in {log.relative_to(workspace.root)}")
    found = Outcome(name, report.environment, report.version, triggers, why, unjudged=unjudged)
    if dry_run or not why:
        return found
    for trigger in triggers:
        say(f"  {line_of(trigger)}")
    from ci.gate import GateRefusal

    write_atomic(note, json.dumps({"why": why, "since": time.time()}) + "\n")
    try:
        made = _challenge(workspace, spec, found)
    except GateRefusal:
        note.unlink(missing_ok=True)  # it ended, with a no; whatever else stopped it, the next call goes on
        raise
    note.unlink(missing_ok=True)
    return made


def _seen(workspace: Workspace, spec: ModelSpec, report: DriftReport) -> Seen:
    from ci.live.prediction_log import read_labels
    from ci.mlflow_api.store import connect

    newest = connect(workspace).newest_run(spec.name)
    trained = None if newest is None else newest.started / 1000
    labels = read_labels(workspace.labels(report.environment, spec.name))
    return Seen(
        now=time.time(),
        trained=trained,
        labelled_since=sum(when > (trained or 0.0) for when in labels.times.values()),
        drifted=tuple(report.drifted),
        judged=sum(found.effect is not None for found in report.features),
        labelled=report.performance.labelled_rows,
        metrics=report.performance.metrics,
    )


def _why(triggers: Sequence[Trigger], force: bool, note: Path) -> str:
    """Return what starts the retraining, empty when nothing does."""
    if fired := [trigger.name for trigger in triggers if trigger.fired]:
        return ", ".join(fired)
    if force:
        return "--force"
    try:
        before: Any = json.loads(note.read_text())
        return f"goes on with what was interrupted ({before['why'].removeprefix('goes on with what was interrupted ')})"
    except FileNotFoundError:
        return ""
    except (ValueError, KeyError, TypeError, AttributeError):
        return "goes on with what was interrupted"


def _challenge(workspace: Workspace, spec: ModelSpec, found: Outcome) -> Outcome:
    """Train on the newer data, gate, register, build and propose."""
    from ci.environments import load_all
    from ci.live.newer_rows import assemble
    from ci.promote import promote
    from ci.ship import make_version

    name, first = spec.name, load_all(workspace.root)[0].name
    with step(f"collect labelled rows of {found.environment}") as shown:
        newer = assemble(workspace, spec, found.environment)
        shown.note = f"{len(newer)} rows"
    if newer.empty:
        say("  no logged row has a label: the same data gives the same model; add labels with `wharf label`")
    challenger = make_version(workspace, name, newer=newer)
    version = challenger.version
    with step(f"propose version {version} to {first}"):
        made = promote(workspace, name, first, version=version, propose=True)
    return Outcome(
        model=name,
        environment=found.environment,
        version=found.version,
        triggers=found.triggers,
        why=found.why,
        rows=len(newer),
        run=challenger.run,
        challenger=version,
        proposed_to=first,
        changed=made.changed,
        branch=made.branch,
        url=made.url,
        against=tuple(
            f"{check.name.removeprefix('metric.').removesuffix('.champion')}: {check.detail}"
            for check in challenger.evidence.checks
            if check.name.endswith(".champion")
        ),
        summary=made.summary,
        next_steps=tuple(made.next_steps),
        unjudged=found.unjudged,
    )


def line_of(trigger: Trigger) -> str:
    """Return a trigger in one line for a terminal."""
    mark = paint("fired", "yellow") if trigger.fired else "quiet"
    return f"{mark}  {trigger.name}: {trigger.detail}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `wharf retrain`."""
    parser.add_argument("model", help="name of the model")
    parser.add_argument(
        "--env", metavar="ENV", help="environment whose traffic counts (default: the most advanced one)"
    )
    parser.add_argument("--since", metavar="TIME", help="window of traffic, as of `wharf monitor`")
    parser.add_argument("--force", action="store_true", help="retrain although no trigger fires")
    parser.add_argument("--dry-run", action="store_true", help="only show the triggers")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    """Retrain when a trigger fires and print the outcome.

    A model that is released nowhere is nothing to do, so that a nightly run over all models does not fail for it;
    with `--env` or `--force` it was asked for and is a mistake.
    """
    since = parse_since(options.since) if options.since else None
    try:
        found = retrain(
            workspace, options.model, options.env, force=options.force, dry_run=options.dry_run, since=since
        )
    except NothingReleased:
        if options.env or options.force:
            raise
        nothing = {"model": options.model, "environment": None, "version": None, "triggers": [], "why": ""}
        text = f"{options.model} has no release: nothing to do"
        print(json.dumps({**nothing, "challenger": None}, indent=2) if options.json else text)
        return 0
    print(json.dumps(asdict(found), indent=2) if options.json else text_of(found, options.dry_run))
    return 0


def text_of(found: Outcome, dry_run: bool = False) -> str:
    """Return the outcome as text: triggers, what was done, what a person does next."""
    lines = [line_of(trigger) for trigger in found.triggers]
    if not found.triggers:
        lines.append(f"models/{found.model}/model.yaml sets no retraining trigger")
    if found.challenger is None:
        what = f"would retrain ({found.why}); nothing was done (dry run)" if found.why and dry_run else ""
        lines.append(what or "no trigger fired: nothing to do")
        return "\n".join(lines)
    lines.append(f"retrained ({found.why}) with {found.rows} labelled rows more: run {found.run}")
    lines += [f"  {line}" for line in found.against]
    return "\n".join([*lines, found.summary, *(f"  {line}" for line in found.next_steps)])
