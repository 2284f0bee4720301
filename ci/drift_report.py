"""Write what `wharf monitor` found: JSON, a self-contained HTML page and metrics for Prometheus."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ci import svg
from ci.files import write_atomic
from ci.workspace import Workspace

if TYPE_CHECKING:
    from ci.drift import FeatureDrift
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
    html = page(report, samples)
    for name in (stem, "latest"):
        write_atomic(folder / f"{name}.json", document)
        write_atomic(folder / f"{name}.html", html)
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
    from datetime import datetime

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
    service, performance = report.service, report.performance
    verdict = f"{len(report.alerts)} alerts" if report.alerts else "No alert"
    facts = [
        ("window", f"{report.since} to {report.until}"),
        ("rows", f"{report.rows} in {service.requests} requests"),
        ("errors", f"{service.failed} failed ({service.error_rate:.2%}), {service.refused} refused"),
        ("latency", f"p50 {_ms(service.p50_ms)}, p99 {_ms(service.p99_ms)}"),
        ("labelled rows", str(performance.labelled_rows)),
        ("run", report.run),
        *((key.replace("_", " "), f"{value:.1%}") for key, value in report.coverage.items()),
    ]
    title = f"{report.model} version {report.version} in {report.environment}"
    body = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="{"bad" if report.alerts else "good"}">{verdict} · {escape(report.created)}</p>',
        _list(report.alerts),
        _list(report.notes),
        _table(["", ""], facts),
        "<h2>Performance on labelled rows</h2>",
        _performance(report),
        "<h2>Drift by feature</h2>",
        "<p>Bars are effect sizes, red where the feature drifted; the tick is the threshold.</p>",
        svg.bars([(f.feature, f.effect or 0.0, f.threshold, f.drifted) for f in ordered[:20]], "effect sizes"),
        '<p><span class="blue">■</span> training reference <span class="orange">■</span> live traffic</p>',
        *_histograms(ordered, samples),
        "<h2>All figures</h2>",
        _table(
            ["feature", "method", "effect", "threshold", "p", "missing before", "missing now", ""],
            [_figures(found) for found in [*report.features, *report.predictions]],
        ),
        "<h2>Data quality and service</h2>",
        _table(
            ["what", "check", "share", "bound", ""],
            [
                (r.name, r.check, f"{r.value:.2%}", _share(r.bound), "beyond" if r.beyond else "")
                for r in report.quality
            ],
        )
        if report.quality
        else "<p>No fault in the window.</p>",
        _table(["error", "requests"], list(service.errors.items())) if service.errors else "",
    ]
    return _html(f"{title}: live traffic", "\n".join(body))


def _performance(report: DriftReport) -> str:
    found = report.performance
    rows = [(key, "-" if value is None else f"{value:.4f}") for key, value in found.metrics.items()]
    note = f"<p>{escape(found.note)}</p>" if found.note else ""
    return (_table(["metric", "value"], rows) if rows else "") + note


def _figures(found: FeatureDrift) -> tuple[str, ...]:
    return (
        found.feature,
        found.method,
        "-" if found.effect is None else f"{found.effect:.3f}",
        "-" if found.threshold is None else f"{found.threshold:g}",
        "-" if found.p_value is None else f"{found.p_value:.2g}",
        f"{found.reference_missing:.1%}",
        f"{found.current_missing:.1%}",
        found.note or ("drift" if found.drifted else ""),
    )


def _histograms(ordered: Sequence[FeatureDrift], samples: Sequence[Sample]) -> Iterable[str]:
    known = {sample.feature: sample for sample in samples}
    for found in [one for one in ordered if one.feature in known][:PLOTS]:
        sample = known[found.feature]
        names, old, new = _shares(sample)
        yield svg.histograms(names, old, new, f"{found.feature}: {found.method} {found.effect:.3f}")


def _shares(sample: Sample, bins: int = 16) -> tuple[list[str], list[float], list[float]]:
    """Return bin names and the shares of both sides; numbers in even bins over what both sides span."""
    old, new = (side[np.isfinite(side)] for side in (sample.reference, sample.current))
    if sample.names is not None:
        edges = np.arange(-1, len(sample.names) + 1) - 0.5
        names = ["other", *sample.names]
    else:
        low, high = min(old.min(), new.min()), max(old.max(), new.max())
        edges = np.linspace(low, high if high > low else low + 1, bins + 1)
        names = [f"{edge:.3g}" for edge in edges[:-1]]
    counts = [np.histogram(side, edges)[0] / max(len(side), 1) for side in (old, new)]
    return names, counts[0].tolist(), counts[1].tolist()


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header) if any(header) else ""
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.2rem .8rem .2rem 0;text-align:left;border-bottom:1px solid #ddd}
.good{color:#2e7d32}.bad{color:#c0392b}.blue{color:#3b6ea8}.orange{color:#d9822b}"""


def _html(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )
