"""Write what `wharf monitor` found: JSON, a self-contained HTML page and metrics for Prometheus."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ci.files import write_atomic
from ci.pages import charts, html
from ci.workspace import Workspace

if TYPE_CHECKING:
    from ci.live.drift import FeatureDrift
    from ci.monitor import DriftReport

PLOTS = 8  # histograms in the report: those of the features that moved most


@dataclass(frozen=True)
class Sample:
    """The values of one feature on both sides, for its histogram; `names` are category names in order of code."""

    feature: str
    reference: NDArray[np.float64]
    current: NDArray[np.float64]
    names: Sequence[str] | None = None


def write(workspace: Workspace, report: DriftReport, samples: Sequence[Sample]) -> DriftReport:
    """Write `monitor-<UTC>.json` and `.html`, `latest.*` and `metrics.prom`; return the report with its path.

    The newest metrics replace the older ones in one rename, as node_exporter's textfile collector wants it.
    """
    folder = workspace.state / "reports" / report.model / report.environment
    stem = "monitor-" + report.created.replace(":", "").replace("-", "").replace("+0000", "Z")
    report = replace(report, path=str((folder / f"{stem}.html").relative_to(workspace.root)))
    document = json.dumps(asdict(report), indent=2, allow_nan=False) + "\n"
    shown = page(report, samples)
    for name in (stem, "latest"):
        write_atomic(folder / f"{name}.json", document)
        write_atomic(folder / f"{name}.html", shown)
    write_atomic(folder / "metrics.prom", prometheus(report))
    return report


def prometheus(report: DriftReport) -> str:
    """Return the report in Prometheus' text format (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    where = {"model": report.model, "environment": report.environment}
    judged = [(found, found.effect) for found in [*report.features, *report.predictions] if found.effect is not None]
    service = report.service
    created = _seconds(report.created)
    latency = {"0.5": service.p50_ms, "0.99": service.p99_ms}
    families: list[tuple[str, str, list[tuple[dict[str, str], float]]]] = [
        ("drift_effect", "Effect size of drift by feature.", [(where | _of(f), value) for f, value in judged]),
        (
            "drift_threshold",
            "Effect size above which a feature counts as drifted.",
            [(where | _of(f), f.threshold) for f, _ in judged if f.threshold is not None],
        ),
        ("drifted", "1 where the feature drifted.", [(where | _of(f), float(f.drifted)) for f, _ in judged]),
        (
            "quality_rate",
            "Share of rows or requests with a fault.",
            [(where | {"name": rate.name, "check": rate.check}, rate.value) for rate in report.quality],
        ),
        (
            "model_metric",
            "Metric on the labelled rows of the window.",
            [
                (where | {"metric": key}, value)
                for key, value in report.performance.metrics.items()
                if value is not None
            ],
        ),
        ("labelled_rows", "Labelled rows in the window.", [(where, report.performance.labelled_rows)]),
        ("window_rows", "Answered rows in the window.", [(where, report.rows)]),
        ("window_requests", "Requests in the window.", [(where, service.requests)]),
        ("error_rate", "Share of requests answered with 5xx.", [(where, service.error_rate)]),
        (
            "latency_ms",
            "Quantile of the duration of answered requests.",
            [(where | {"quantile": key}, value) for key, value in latency.items() if value is not None],
        ),
        (
            "coverage",
            "Share of the catalogue that was recommended.",
            [(where | {"of": k}, v) for k, v in report.coverage.items()],
        ),
        ("model_version", "Version that the window belongs to.", [(where, report.version)]),
        ("alerts", "Alerts of the newest look.", [(where, len(report.alerts))]),
        ("monitor_timestamp_seconds", "When the newest look was.", [(where, created)]),
    ]
    lines: list[str] = []
    for name, help_text, samples in families:
        if samples:
            lines += [f"# HELP wharf_{name} {help_text}", f"# TYPE wharf_{name} gauge"]
            lines += [f"wharf_{name}{{{_labels(labels)}}} {_number(value)}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _of(found: FeatureDrift) -> dict[str, str]:
    return {"feature": found.feature, "method": found.method}


def _seconds(iso: str) -> float:
    return datetime.fromisoformat(iso).timestamp()


def _labels(labels: dict[str, str]) -> str:
    def quoted(value: str) -> str:
        return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    return ",".join(f'{key}="{quoted(value)}"' for key, value in labels.items())


def _number(value: float) -> str:
    return repr(float(value)) if math.isfinite(value) else ("NaN" if math.isnan(value) else f"{value:+}".title())


def page(report: DriftReport, samples: Sequence[Sample]) -> str:
    """Return the report as one HTML file without outside references."""
    from ci.monitor import by_effect

    ordered = by_effect([*report.features, *report.predictions])
    sections = [
        html.Section("What was found", _summary(report)),
        html.Section("Performance on labelled rows", _performance(report)),
        html.Section(
            "Drift by feature",
            html.join(_effects(ordered[:20]), html.grid(_histograms(ordered, samples))),
            "Bars are effect sizes, red where the feature drifted; the mark on a bar is the threshold.",
        ),
        html.Section("All figures", _figures([*report.features, *report.predictions])),
        html.Section("Data quality and service", _rates(report)),
    ]
    count = len(report.alerts)
    verdict: tuple[str, html.Mood] = (f"{count} alert{'s' * (count > 1)}", "bad") if count else ("no alert", "good")
    title = f"{report.model} version {report.version} in {report.environment}: live traffic"
    return html.page(title, sections, verdict=verdict, subtitle=f"{report.since} to {report.until}")


def _summary(report: DriftReport) -> html.Html:
    service = report.service
    tiles = [
        ("rows", report.rows, f"in {service.requests} requests"),
        ("features drifted", len(report.drifted), f"of {sum(f.effect is not None for f in report.features)} judged"),
        ("failed", f"{service.error_rate:.2%}", f"{service.failed} requests, {service.refused} more refused"),
        ("latency p50", _ms(service.p50_ms), f"p99 {_ms(service.p99_ms)}"),
        ("labelled rows", report.performance.labelled_rows, "join the log by request id"),
        *((key.replace("_", " "), f"{value:.1%}", "of the catalogue") for key, value in report.coverage.items()),
    ]
    lines = [html.paragraph(html.Html(f"{html.badge('alert', 'bad')} {html.text(line)}")) for line in report.alerts]
    lines += [html.paragraph(html.Html(f"{html.badge('note', 'warn')} {html.text(line)}")) for line in report.notes]
    return html.join(html.tiles(tiles), *lines, html.definitions([("training run", html.code(report.run))]))


def _performance(report: DriftReport) -> html.Html:
    found = report.performance
    if not found.labelled_rows:
        return html.paragraph(found.note or "No labels in the window: performance is not judged.")
    rows = [
        (key, "not known from the log" if value is None else f"{value:.4f}") for key, value in found.metrics.items()
    ]
    note = [html.paragraph(found.note)] if found.note else []
    return html.join(html.table(["metric", "value"], rows, [1]), *note)


def _figures(found: Sequence[FeatureDrift]) -> html.Html:
    header = ["feature", "method", "effect", "threshold", "p", "missing in training", "missing now", ""]
    rows = [
        (
            one.feature,
            one.method,
            "-" if one.effect is None else f"{one.effect:.3f}",
            "-" if one.threshold is None else f"{one.threshold:g}",
            "-" if one.p_value is None else f"{one.p_value:.2g}",
            f"{one.reference_missing:.1%}",
            f"{one.current_missing:.1%}",
            html.badge("drift", "bad") if one.drifted else one.note,
        )
        for one in found
    ]
    return html.table(header, rows, range(2, 7))


def _rates(report: DriftReport) -> html.Html:
    rows = [
        (
            rate.name,
            rate.check,
            f"{rate.value:.2%}",
            "-" if rate.bound is None else f"{rate.bound:.2%}",
            html.badge("beyond", "bad") if rate.beyond else "",
        )
        for rate in report.quality
    ]
    errors = list(report.service.errors.items())
    return html.join(
        html.table(["what", "check", "share", "bound", ""], rows, [2, 3]) if rows else html.paragraph("No fault."),
        html.table(["error", "requests"], errors, [1]) if errors else html.Html(""),
    )


def _effects(found: Sequence[FeatureDrift]) -> html.Html:
    """Return horizontal bars of effect sizes on one scale, each with its threshold as a mark."""
    left, width, line = 170, 460, 22
    top = max([1e-9, *(max(one.effect or 0.0, one.threshold or 0.0) for one in found)])
    parts: list[str] = []
    for i, one in enumerate(found):
        y, effect = 4 + i * line, one.effect or 0.0
        colour = "var(--bad)" if one.drifted else "var(--c1)"
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{html.text(one.feature)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{effect / top * width:.1f}" height="15" fill="{colour}"/>')
        if one.threshold is not None:
            x = left + one.threshold / top * width
            parts.append(f'<path d="M{x:.1f} {y - 2}v19" stroke="var(--ink)" stroke-width="2"/>')
        parts.append(f'<text class="value" x="{left + width + 8}" y="{y + 12}">{effect:.3f}</text>')
    body, size = "\n".join(parts), f"0 0 {left + width + 60} {8 + len(found) * line}"
    return html.Html(f'<figure><svg viewBox="{size}" role="img" aria-label="effect sizes">\n{body}\n</svg></figure>')


def _histograms(ordered: Sequence[FeatureDrift], samples: Sequence[Sample]) -> list[html.Html]:
    known = {sample.feature: sample for sample in samples}
    plots: list[html.Html] = []
    for found in [one for one in ordered if one.feature in known][:PLOTS]:
        names, old, new = _shares(known[found.feature])
        title = f"{found.feature}: {found.method} {found.effect:.3f}"
        plots.append(charts.bars(title, names, [("training", old), ("live", new)], "share"))
    return plots


def _shares(sample: Sample, bins: int = 16) -> tuple[list[str], list[float], list[float]]:
    """Return bin names and the shares of both sides; numbers in even bins over what both sides span."""
    old, new = (side[np.isfinite(side)] for side in (sample.reference, sample.current))
    if sample.names is not None:
        edges = np.arange(-1, len(sample.names) + 1) - 0.5
        names = ["other", *sample.names]
        old, new = (np.where(side >= len(sample.names), -1, side) for side in (old, new))
    else:
        both = np.concatenate([old, new])
        low, high = (float(both.min()), float(both.max())) if len(both) else (0.0, 1.0)
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        names = [f"{edge:.3g}" for edge in edges[:-1]]
    counts = [np.histogram(side, edges)[0] / max(len(side), 1) for side in (old, new)]
    return names, counts[0].tolist(), counts[1].tolist()


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
