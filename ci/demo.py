"""`wharf demo [MODEL]`: watch the loop close on the local target.

Real rows are sent to the running service as they are (nothing is found), then as a changed instrument would measure
them (drift is found). Labels arrive, a challenger is trained on the newer rows, gated and proposed; nothing is
deployed. The rows are those of the run that is released, training and held-out ones, so the second part measures the
same cases again: it shows how the loop works, not how good the challenger would be on new cases.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ci.console import say, step
from ci.errors import Mistake, Refusal, Unavailable
from ci.live.traffic import batches, send
from ci.workspace import Workspace, load_spec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ci.monitor import DriftReport
    from ci.release import Release
    from ci.retrain import Outcome
    from models.spec import ModelSpec

ROWS = 600  # of each kind of traffic, at most
BATCH = 5  # rows a request
SEED = 11
_LOG_WAIT_S = 10.0


@dataclass(frozen=True)
class Change:
    """What happens to the instrument: numeric columns whose name matches `columns` come out times `factor`."""

    columns: str
    factor: float
    story: str


_CHANGES = {
    "tumor": Change(
        "concav|compact",
        0.6,
        "the microscope's new software smooths the outlines of cell nuclei: concavity, concave points and compactness "
        "come out 40% lower",
    ),
}
_ANY = Change(".", 0.6, "the instrument was recalibrated: all numbers come out 40% lower")


@dataclass(frozen=True)
class Case:
    """A real row as it is sent, and its true label."""

    row: list[Any]
    label: str | float


@dataclass(frozen=True)
class Demo:
    """What was shown."""

    model: str
    environment: str
    version: int
    normal: DriftReport
    shifted: DriftReport
    labels: int
    outcome: Outcome


def demo(workspace: Workspace, name: str, environment: str | None = None) -> Demo:
    """Send normal and shifted traffic, label it, monitor, retrain; returns what was found.

    Raises Mistake for a ranking model or without a healthy local service, Refusal when the drift is not found or the
    gate refuses the challenger.
    """
    from ci.label import Given, label
    from ci.monitor import monitor, released
    from ci.retrain import retrain

    spec = load_spec(workspace, name)
    if spec.task == "ranking":
        raise Mistake(f"the demo shows models of tables, and {name} is a ranking model", tip="try `wharf demo tumor`")
    release, _ = released(workspace, name, environment)
    url = _service(workspace, release)
    with step(f"read the real rows of {name} version {release.version}") as shown:
        cases = read_cases(workspace, spec, release.run)
        shown.note = f"{len(cases)} rows"
    change = _CHANGES.get(name, _ANY)
    begun = time.time()
    with step("send them as they are") as shown:
        shown.note = _send(workspace, release, url, [case.row for case in cases])[1]
    normal = monitor(workspace, name, release.environment, since=begun)
    say(f"    monitor: {_found(normal)}")
    say(f"  now {change.story}")
    turned = time.time()
    with step("send them as the changed instrument measures them") as shown:
        rows = shift(spec, [case.row for case in cases], change)
        ids, shown.note = _send(workspace, release, url, rows)
    with step("labels arrive") as shown:
        parts = zip(ids, batches([case.label for case in cases], BATCH), strict=True)
        given = [Given(one, row, truth, "demo") for one, part in parts if one for row, truth in enumerate(part)]
        added = label(workspace, name, release.environment, given)
        shown.note = f"{added.added} labelled rows"
    shifted = monitor(workspace, name, release.environment, since=turned)
    say(f"    monitor: {_found(shifted)}")
    if not shifted.alerts:
        raise Refusal(f"{name}: the shifted traffic raised no alert", tip=f"see {shifted.path}")
    outcome = retrain(workspace, name, release.environment, since=turned)
    return Demo(name, release.environment, release.version, normal, shifted, added.added, outcome)


def _service(workspace: Workspace, release: Release) -> str:
    """Return the address of the healthy local service of a release; raises Mistake when there is none."""
    from ci.status import applications

    where = f"{release.model} in {release.environment}"
    for found in applications(workspace):
        if (found.model, found.environment) == (release.model, release.environment):
            if found.target != "local":
                raise Mistake(f"{where} runs on the target {found.target}; the demo sends traffic to this machine only")
            if found.health != "Healthy" or found.version != release.version:
                raise Mistake(
                    f"{where} is {found.health}, {found.sync}: {found.message or 'wait a moment'}",
                    tip="see `wharf status`",
                )
            return found.url
    raise Mistake(f"{where} does not run on this machine", tip="start it with `make up`")


def read_cases(workspace: Workspace, spec: ModelSpec, run_id: str) -> list[Case]:
    """Return at most `ROWS` real rows of a run, training and held-out ones, shuffled the same way each time.

    Rows with a missing value are left out when the contract allows none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from ci.live.reference import fetch

    columns = spec.data.by_name()
    wanted = [*columns, spec.data.target]
    tables: list[Any] = [
        pq.read_table(fetch(workspace, run_id, path), columns=wanted)
        for path in ("reference.parquet", "holdout.parquet")
    ]
    table = pa.concat_tables([part.replace_schema_metadata(None) for part in tables], promote_options="permissive")
    order = np.random.default_rng(SEED).permutation(table.num_rows)
    rows = [tuple(row.values()) for row in table.take(order).to_pylist()]
    cases: list[Case] = []
    for *values, target in rows:
        row = [_sent(value) for value in values]
        allowed = all(
            value is not None or column.max_missing > 0 for value, column in zip(row, columns.values(), strict=True)
        )
        if allowed:
            cases.append(Case(row, spec.data.classes[int(target)] if spec.data.classes else float(target)))
    return cases[:ROWS]


def _sent(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def shift(spec: ModelSpec, rows: list[list[Any]], change: Change) -> list[list[Any]]:
    """Return `rows` as the changed instrument gives them; whole numbers stay whole, categories stay as they are."""
    columns = spec.data.by_name()
    factors: NDArray[np.float64] = np.array(
        [
            change.factor if re.search(change.columns, name) and not column.values else 1.0
            for name, column in columns.items()
        ]
    )
    whole = [column.type == "int" for column in columns.values()]
    return [
        [_scaled(value, factor, is_int) for value, factor, is_int in zip(row, factors.tolist(), whole, strict=True)]
        for row in rows
    ]


def _scaled(value: Any, factor: float, whole: bool) -> Any:
    if value is None or factor == 1.0:
        return value
    return round(value * factor) if whole else value * factor


def _send(workspace: Workspace, release: Release, url: str, rows: list[list[Any]]) -> tuple[list[str | None], str]:
    """Send `rows` in batches, wait until the log has them, and return the request ids and a note."""
    sent = send(url, [{"rows": part} for part in batches(rows, BATCH)])
    _wait_for_log(workspace, release, {name for name in sent.ids if name})
    return sent.ids, f"{sent.answered} of {len(sent.ids)} requests answered"


def _wait_for_log(workspace: Workspace, release: Release, ids: set[str]) -> None:
    from ci.live.prediction_log import sizes

    until = time.monotonic() + _LOG_WAIT_S
    while len(sizes(workspace.predictions(release.environment, release.model), ids)) < len(ids):
        if time.monotonic() > until:
            raise Unavailable(f"the prediction log of {release.model} in {release.environment} lacks answered requests")
        time.sleep(0.2)


def _found(report: DriftReport) -> str:
    if not report.alerts:
        return f"{report.rows} rows, no alert"
    drifted = report.drifted
    names = f": {', '.join(drifted[:4])}{', …' if len(drifted) > 4 else ''}" if drifted else ""
    return f"{report.rows} rows, {len(report.alerts)} alerts, {len(drifted)} features drifted{names}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `wharf demo`."""
    parser.add_argument("model", nargs="?", default="tumor", help="a model of table rows (default: tumor)")
    parser.add_argument("--env", metavar="ENV", help="environment (default: the most advanced one with a release)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    """Run the demo and say what happened and what to do with it."""
    shown = demo(workspace, options.model, options.env)
    print(json.dumps(asdict(shown), indent=2) if options.json else text_of(shown))
    return 0


def text_of(shown: Demo) -> str:
    """Return what happened, and the commands to look at the proposal and accept it."""
    outcome, where = shown.outcome, f"{shown.model} version {shown.version} in {shown.environment}"
    lines = [
        "",
        f"{where} answered real rows: {_found(shown.normal)}.",
        f"Then the instrument changed: {_found(shown.shifted)}.",
        f"{shown.labels} labels came: {_metrics(shown.shifted.performance.metrics)}.",
        *(f"  {trigger.name}: {trigger.detail}" for trigger in outcome.triggers if trigger.fired),
    ]
    if outcome.challenger is None:
        return "\n".join([*lines, "No retraining trigger fired, so nothing was trained."])
    lines.append(f"Version {outcome.challenger} was trained with these rows too and passed the gate, on held-out rows:")
    lines += [f"  {line}" for line in outcome.against]
    lines += ["Nothing was deployed:", f"  {outcome.summary}"]
    if not outcome.next_steps:
        return "\n".join([*lines, f"The drift report: {shown.shifted.path}"])
    lines += ["Look at it, then accept it:", *(f"  {line}" for line in outcome.next_steps)]
    return "\n".join([*lines, f"The drift report: {shown.shifted.path}"])


def _metrics(metrics: Mapping[str, float | None]) -> str:
    known = [f"{name} {value:.3f}" for name, value in metrics.items() if value is not None]
    return ", ".join(known[:5]) or "no metric could be measured"
