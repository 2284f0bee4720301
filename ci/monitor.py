"""`wharf monitor MODEL`: compare live traffic with what the released version was trained on.

Reads the prediction log of the version that runs, writes `.wharf/reports/<model>/<environment>/monitor-<UTC>.json` and
`.html` (and `latest.*`), and `metrics.prom` for Prometheus' textfile collector. Ends with code 3 and one line an alert.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from ci.console import say, step, table
from ci.errors import Mistake, Refusal, Unavailable, did_you_mean
from ci.release import Release
from ci.workspace import Workspace, load_spec

if TYPE_CHECKING:
    from ci.live.drift import FeatureDrift
    from ci.live.measure import Performance, Rate, Service
    from ci.live.prediction_log import PredictionLog
    from ci.pages.drift_report import Sample
    from models.spec import ModelSpec

DAYS = 7
MAX_ROWS = 100_000


class NothingReleased(Mistake):
    """The model has no release whose traffic could be looked at."""


@dataclass(frozen=True)
class DriftReport:
    """What one look at the live traffic of a released version found; times are UTC in ISO 8601."""

    model: str
    environment: str
    version: int
    run: str
    created: str
    since: str
    until: str
    rows: int
    features: list[FeatureDrift]
    predictions: list[FeatureDrift]
    quality: list[Rate]
    performance: Performance
    service: Service
    coverage: dict[str, float]  # ranking models only
    notes: list[str]
    alerts: list[str]
    path: str = ""  # of the HTML report, relative to the repository

    @property
    def drifted(self) -> list[str]:
        """Names of the features that drifted."""
        return [found.feature for found in self.features if found.drifted]


def monitor(
    workspace: Workspace,
    name: str,
    environment: str | None = None,
    *,
    since: float | None = None,
    max_rows: int = MAX_ROWS,
) -> DriftReport:
    """Measure the live traffic of `name` in `environment` (default: the most advanced one with a release).

    The window is the newest `max_rows` rows that the released version answered since `since` (seconds since 1970;
    default: since the release took effect, at most `DAYS` days back). Writes the reports; alerts are in the result and
    are not raised. Raises Mistake when nothing is released, Unavailable when the reference cannot be had.
    """
    spec = load_spec(workspace, name)
    release, effective = released(workspace, name, environment)
    now = time.time()
    begin = max(effective, now - DAYS * 86_400) if since is None else since
    report, samples = _measure(workspace, spec, release, begin, now, max_rows)
    from ci.pages.drift_report import write

    return write(workspace, report, samples)


def released(workspace: Workspace, name: str, environment: str | None = None) -> tuple[Release, float]:
    """Return the release of `name` and when it took effect (seconds since 1970), by git history.

    Without `environment` it is the most advanced one that has a release. Raises NothingReleased when there is none.
    """
    from ci.environments import load_all
    from ci.history import entries, revision

    order = [entry.name for entry in load_all(workspace.root)]
    if environment is not None and environment not in order:
        raise Mistake(
            f"no environment '{environment}'{did_you_mean(environment, order)}", tip=f"there are {', '.join(order)}"
        )
    past = entries(workspace.root, revision(workspace), name, environment)
    current = {entry.environment: entry for entry in past}
    for candidate in [environment] if environment else order[::-1]:
        entry = current.get(candidate)
        if entry is not None and entry.release is not None:
            return entry.release, datetime.fromisoformat(entry.when).timestamp()
    where = f" in {environment}" if environment else ""
    raise NothingReleased(
        f"{name} has no release{where}: there is nothing to monitor", tip=f"release it with `wharf ship {name}`"
    )


def _measure(
    workspace: Workspace, spec: ModelSpec, release: Release, begin: float, end: float, max_rows: int
) -> tuple[DriftReport, list[Sample]]:
    from ci.live import measure
    from ci.live.prediction_log import join, read, read_labels
    from ci.live.reference import load_ranking, load_table, schema_of
    from ci.pages.drift_report import Sample

    ranking = spec.task == "ranking"
    log = read(
        workspace.predictions(release.environment, spec.name),
        schema_of(spec),
        since=begin,
        until=end,
        versions=[release.version],
        max_rows=max_rows,
    )
    labels = read_labels(workspace.labels(release.environment, spec.name), several=ranking)
    at, known = join(log, labels)
    service = measure.service(log)
    coverage: dict[str, float] = {}
    samples: list[Sample] = []
    if ranking:
        longest = max((len(items) for items in log.predictions), default=10)
        catalogue = load_ranking(workspace, spec, release.run, longest)
        features, predictions = measure.ranking_drift(spec, catalogue, log)
        rates = measure.unknown_users(catalogue, log)
        coverage = measure.coverage(catalogue, log)
        performance = measure.ranking_performance(catalogue, log, at, known)
    else:
        reference = load_table(workspace, spec, release.run)
        features = measure.table_drift(spec, reference, log)
        predictions = measure.prediction_drift(spec, reference, log)
        rates = measure.quality(spec, log)
        performance = measure.table_performance(spec, log, at, known)
        if log.rows:
            columns = spec.data.by_name().items()
            samples = [
                Sample(column_name, reference.values[:, i], log.values[:, i], column.values)
                for i, (column_name, column) in enumerate(columns)
            ]
    rates = [*rates, *measure.service_rates(service)]
    report = DriftReport(
        model=spec.name,
        environment=release.environment,
        version=release.version,
        run=release.run,
        created=_iso(end),
        since=_iso(float(log.times[0]) if log.cut and len(log.times) else begin),
        until=_iso(end),
        rows=log.rows,
        features=features,
        predictions=predictions,
        quality=rates,
        performance=performance,
        service=service,
        coverage=coverage,
        notes=_notes(spec, log, features, labels.broken, max_rows),
        alerts=[],
    )
    return replace(report, alerts=_alerts(spec, report)), samples


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def _notes(
    spec: ModelSpec, log: PredictionLog, features: list[FeatureDrift], broken_labels: int, max_rows: int
) -> list[str]:
    """Return what a reader must know about what was not judged or not read."""
    notes: list[str] = []
    judged = sum(found.effect is not None for found in features)
    if log.rows == 0:
        notes.append("not judged: no prediction was logged in the window")
    elif judged < len(features):
        wanting = [found for found in features if found.effect is None]
        notes.append(f"{len(wanting)} of {len(features)} features {wanting[0].note} (drift.min_rows)")
    if log.cut:
        notes.append(f"the window holds more rows; the newest {log.rows} were read (--rows {max_rows})")
    if log.broken:
        notes.append(f"{log.broken} lines of the prediction log could not be read and were left out")
    if log.repeated:
        notes.append(
            f"{log.repeated} requests came again under the same id; labels count for the newest answer of an id"
        )
    if broken_labels:
        notes.append(f"{broken_labels} lines of the labels could not be read and were left out")
    return notes


def _alerts(spec: ModelSpec, report: DriftReport) -> list[str]:
    where = f"{report.model}/{report.environment}"
    alerts = [
        f"{where}: {found.feature}: {found.method} {found.effect:.3f} is above {found.threshold:g} (drift)"
        for found in [*report.features, *report.predictions]
        if found.drifted and found.threshold is not None
    ]
    alerts += [
        f"{where}: {rate.name}: {rate.check} {rate.value:.2%} is above {rate.bound:.2%}"
        for rate in report.quality
        if rate.beyond and rate.bound is not None
    ]
    bound = spec.retraining.performance
    if bound is not None and report.performance.labelled_rows >= bound.min_rows:
        value = report.performance.metrics.get(bound.metric)
        rows = f"on {report.performance.labelled_rows} labelled rows"
        if value is not None and bound.min is not None and value < bound.min:
            alerts.append(f"{where}: {bound.metric}: {value:.4f} is below {bound.min:g} {rows}")
        if value is not None and bound.max is not None and value > bound.max:
            alerts.append(f"{where}: {bound.metric}: {value:.4f} is above {bound.max:g} {rows}")
    return alerts


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `wharf monitor`."""
    parser.add_argument("model", help="name of the model")
    parser.add_argument("--env", metavar="ENV", help="environment (default: the most advanced one with a release)")
    parser.add_argument(
        "--since", metavar="TIME", help=f"30m, 12h, 7d or an ISO time (default: the release, ≤ {DAYS}d)"
    )
    parser.add_argument(
        "--rows", type=int, default=MAX_ROWS, help="look at this many newest rows at most (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    """Measure, print, tell the webhook; raises Refusal with one line an alert."""
    if options.rows < 1:
        raise Mistake(f"--rows: must be 1 or more, not {options.rows}")
    since = parse_since(options.since) if options.since else None
    with step(f"monitor {options.model}") as shown:
        report = monitor(workspace, options.model, options.env, since=since, max_rows=options.rows)
        shown.note = f"{report.environment} version {report.version}, {report.rows} rows"
    print(json.dumps(asdict(report), indent=2) if options.json else shown_text(report))
    if report.alerts:
        raise_alerts(report)
    return 0


def raise_alerts(report: DriftReport) -> None:
    """Tell the webhook, then raise Refusal with the alerts (and a line more when the webhook was not reached)."""
    from ci.live.webhook import deliver

    lines = list(report.alerts)
    try:
        if where := deliver(report):
            say(f"  alerts were sent to {where}")
    except (Mistake, Unavailable) as error:
        lines += error.lines
    raise Refusal(
        lines, tip=f"see {report.path}; `wharf retrain {report.model} --env {report.environment}` reacts to it"
    )


def parse_since(text: str) -> float:
    """Return the time meant by `30m`, `12h`, `7d` (ago) or an ISO 8601 time (UTC unless it says so), as seconds."""
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        return time.time() - int(found[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[found[2]]
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise Mistake(f"--since: '{text}' is neither a span such as 30m, 12h, 7d nor an ISO 8601 time") from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def shown_text(report: DriftReport) -> str:
    """Return the report as text for a terminal: what matters first."""
    service, performance = report.service, report.performance
    lines = [
        f"{report.model} version {report.version} in {report.environment}: {report.rows} rows in {service.requests} "
        f"requests from {report.since} to {report.until}",
        f"errors {service.error_rate:.2%}, refused {service.refused}, latency p50 {_ms(service.p50_ms)} "
        f"p99 {_ms(service.p99_ms)}",
    ]
    if performance.labelled_rows:
        values = ", ".join(f"{k} {'-' if v is None else f'{v:.4f}'}" for k, v in performance.metrics.items())
        lines.append(f"{performance.labelled_rows} labelled rows: {values or performance.note}")
    else:
        lines.append("no labels: performance is not judged")
    lines += [f"{key.replace('_', ' ')} {value:.1%}" for key, value in report.coverage.items()]
    rows = [
        [found.feature, found.method, f"{found.effect:.3f}", found.threshold or "-", "drift" if found.drifted else ""]
        for found in by_effect([*report.features, *report.predictions])
    ]
    if rows:
        lines += ["", table(["FEATURE", "METHOD", "EFFECT", "THRESHOLD", ""], rows[:12])]
        if len(rows) > 12:
            lines.append(f"… and {len(rows) - 12} more, none of them further over its threshold")
    lines += ["", *(f"note: {note}" for note in report.notes)]
    verdict = f"{len(report.alerts)} alerts" if report.alerts else "no alert"
    return "\n".join([*lines, f"{verdict}; report: {report.path}"]).replace("\n\n\n", "\n\n")


def by_effect(found: list[FeatureDrift]) -> list[FeatureDrift]:
    """Return what was measured, the furthest over its threshold first, those without a threshold last."""
    measured = [(one.effect / (one.threshold or float("inf")), one) for one in found if one.effect is not None]
    return [one for _, one in sorted(measured, key=lambda pair: pair[0], reverse=True)]


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
