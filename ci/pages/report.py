"""The gate's evidence as one HTML file; also the door to the page and plot helpers for other reports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ci.gating.evidence import Evidence
from ci.mlflow_api.store import Run
from ci.pages.charts import COLOURS, Estimate, Series, bars, estimates, heat_map, lines, number, points
from ci.pages.html import (
    Html,
    Section,
    badge,
    code,
    definitions,
    details,
    grid,
    join,
    link,
    page,
    paragraph,
    png,
    table,
    text,
    tiles,
)
from models.metrics import compute, ndcg_per_user, recall_per_user
from models.spec import METRICS, ModelSpec

if TYPE_CHECKING:
    import pandas as pd

    from ci.gate import Material
    from ci.gating.scoring import Scored

__all__ = [
    "Estimate",
    "Html",
    "Section",
    "Series",
    "badge",
    "bars",
    "code",
    "definitions",
    "details",
    "estimates",
    "evidence_report",
    "grid",
    "heat_map",
    "join",
    "lines",
    "link",
    "page",
    "paragraph",
    "png",
    "points",
    "table",
    "text",
    "tiles",
]


def evidence_report(evidence: Evidence, sha256: str, spec: ModelSpec, run: Run, material: Material) -> str:
    """Return the report of one gated run as a complete HTML page.

    `sha256` is the digest of its evidence.json. Works without predictions too: then there is nothing to plot, and
    the checks say why.
    """
    failed, total = len(evidence.failed), len(evidence.checks)
    verdict = ("passed", "good") if evidence.passed else ("refused", "bad")
    sections = [
        Section("Verdict", _verdict(evidence, spec), f"{total - failed} of {total} checks passed."),
        Section("Checks", _checks(evidence), "The bound is part of model.yaml; a check that could not run has failed."),
    ]
    if evidence.metrics:
        note = "On held-out rows that training never saw; bars are 95 % bootstrap intervals of 1,000 resamples."
        sections.append(Section("Metrics", _metrics(evidence, spec, material), note))
    if material.scored is not None:
        sections.append(Section("Behaviour", _behaviour(spec, material), _READING[spec.task]))
    if slices := _slices(evidence, spec):
        sections.append(Section("Slices", grid(slices), "The metric in each part of the held-out rows."))
    if material.frame is not None:
        sections.append(Section("Data", _data(evidence, spec, material.frame)))
    sections.append(Section("Where it comes from", _origin(evidence, sha256, run)))
    return page(
        f"{spec.name}: gate of run {run.id[:8]}",
        sections,
        verdict=verdict,
        subtitle=f"{spec.description} Task {spec.task}, team {spec.team}, owner {spec.owner}.",
    )


def _verdict(evidence: Evidence, spec: ModelSpec) -> Html:
    rival = evidence.champion
    entries: list[tuple[object, object, object]] = []
    for name, found in list(evidence.metrics.items())[:4]:
        rule = spec.gate.metrics[name]
        bounds = [f"at least {rule.min:g}"] if rule.min is not None else []
        bounds += [f"at most {rule.max:g}"] if rule.max is not None else []
        entries.append((name, number(found.value), ", ".join(bounds) or "against the champion"))
    for check in evidence.checks:
        if check.name in {"latency.p99_ms", "artifact.size_mb"} and check.value is not None:
            unit = "ms" if check.name.startswith("latency") else "MB"
            name = "latency p99" if unit == "ms" else "artifact"
            entries.append((name, f"{check.value:.3g} {unit}", f"at most {check.bound:g} {unit}"))
    against = (
        f"Compared with the champion: version {rival.version} in {rival.environment} (run {rival.run[:8]})."
        if rival
        else "There is no champion to compare with: no other version was released when this run was gated."
    )
    problems = [paragraph(join(badge("failed", "bad"), text(f" {check.line()}"))) for check in evidence.failed]
    return join(*problems, tiles(entries) if entries else Html(""), paragraph(against))


def _checks(evidence: Evidence) -> Html:
    def figure(value: float | None) -> str:
        return "" if value is None else number(value)

    rows = [
        [
            badge("passed", "good") if check.passed else badge("failed", "bad"),
            check.name,
            figure(check.value),
            figure(check.bound),
            check.detail,
        ]
        for check in sorted(evidence.checks, key=lambda check: check.passed)  # failed ones first
    ]
    return table(["", "check", "value", "bound", "what it says"], rows, numeric=(2, 3))


def _metrics(evidence: Evidence, spec: ModelSpec, material: Material) -> Html:
    old = material.rival.scored if material.rival else None
    rows: list[list[object]] = []
    shown: list[Estimate] = []
    for name, found in evidence.metrics.items():
        rule = spec.gate.metrics[name]
        champion = _champion_value(name, old)
        bound = rule.min if rule.min is not None else rule.max
        shown.append(Estimate(name, found.value, found.low, found.high, bound, champion))
        spread = "" if found.low is None or found.high is None else f"{number(found.low)} to {number(found.high)}"
        better = "more" if METRICS[spec.task][name] else "less"
        rows.append([name, number(found.value), spread, "" if champion is None else number(champion), better])
    header = ["metric", "this run", "95 % interval", "champion", "better is"]
    if old is None:
        header, rows = [*header[:3], header[4]], [[*row[:3], row[4]] for row in rows]
    listed = table(header, rows, numeric=range(1, len(header)))
    return grid([estimates("Metrics against their bounds", shown), listed])


def _slices(evidence: Evidence, spec: ModelSpec) -> list[Html]:
    plots: list[Html] = []
    for rule in spec.gate.slices:
        head, tail = f"slice.{rule.column}.", f".{rule.metric}"
        found = [
            c for c in evidence.checks if c.name.startswith(head) and c.name.endswith(tail) and c.value is not None
        ]
        names = [check.name.removeprefix(head).removesuffix(tail) for check in found]
        if names:
            values = [check.value for check in found if check.value is not None]
            bound = rule.min if rule.min is not None else rule.max
            plots.append(bars(f"{rule.metric} by {rule.column}", names, [("this run", values)], rule.metric, bound))
    return plots


def _champion_value(metric: str, old: Scored | None) -> float | None:
    try:
        return compute(old.task, metric, old.y_true, old.outputs) if old else None
    except ValueError:  # the champion predicts NaN: its check has failed and says so
        return None


_READING = {
    "binary": "ROC: share of true positives against false ones at every threshold. Calibration: of the rows that got "
    "a probability, the share that was positive; on the diagonal it means what it says.",
    "multiclass": "Rows are the true class, columns what was predicted; calibration compares the highest probability "
    "with how often it was right.",
    "regression": "On the diagonal a prediction is exact.",
    "ranking": "Quality of the first k recommendations, against recommending what is popular.",
}


def _behaviour(spec: ModelSpec, material: Material) -> Html:
    scored = material.scored
    if scored is None:
        return Html("")
    if scored.finite < scored.rows:
        return paragraph("Not drawn: there are NaN or infinite predictions.")
    models = [("this run", scored)]
    if material.rival and material.rival.scored and material.rival.scored.finite == material.rival.scored.rows:
        models.append((f"champion, version {material.rival.champion.version}", material.rival.scored))
    plots = {"binary": _binary, "multiclass": _multiclass, "regression": _regression, "ranking": _ranking}
    return grid(plots[scored.task](spec, models))


def _binary(spec: ModelSpec, models: Sequence[tuple[str, Scored]]) -> list[Html]:
    chance = Series("chance", (0, 1), (0, 1), "var(--soft)", dashed=True)
    roc = [
        Series(name, *roc_curve(one.y_true, one.outputs), COLOURS[i], dashed=i > 0)
        for i, (name, one) in enumerate(models)
    ]
    calibrated = [
        Series(name, *calibration(one.outputs, one.y_true == 1), COLOURS[i], dashed=i > 0, dots=True)
        for i, (name, one) in enumerate(models)
    ]
    exact = Series("exact", (0, 1), (0, 1), "var(--soft)", dashed=True)
    first = models[0][1]
    square = (0.0, 1.0)
    classes = spec.data.classes or ["0", "1"]
    counts = confusion(first.y_true, (first.outputs >= 0.5).astype(np.int64), 2)
    edges = np.linspace(0, 1, 11)
    shares = [(f"true {name}", _shares(first.outputs[first.y_true == i], edges)) for i, name in enumerate(classes)]
    return [
        lines("ROC", [*roc, chance], "false positive rate", "true positive rate", square, square),
        lines("Calibration", [*calibrated, exact], "probability given", "share that was positive", square, square),
        heat_map("Confusion at 0.5", classes, counts, "predicted", "true"),
        bars(f"Probability of {classes[1]}", [f"{low:.1f}" for low in edges[:-1]], shares, "share of the class"),
    ]


def _multiclass(spec: ModelSpec, models: Sequence[tuple[str, Scored]]) -> list[Html]:
    classes = spec.data.classes or []
    first = models[0][1]
    square = (0.0, 1.0)
    exact = Series("exact", (0, 1), (0, 1), "var(--soft)", dashed=True)
    calibrated: list[Series] = []
    recalls: list[tuple[str, list[float]]] = []
    for i, (name, one) in enumerate(models):
        said = one.outputs.argmax(axis=1)
        calibrated.append(
            Series(name, *calibration(one.outputs.max(axis=1), said == one.y_true), COLOURS[i], dots=True)
        )
        counts = np.asarray(confusion(one.y_true, said, len(classes)), np.float64)
        total = counts.sum(axis=1)
        share = np.divide(counts.diagonal(), total, out=np.full(len(classes), np.nan), where=total > 0)
        recalls.append((name, share.tolist()))
    counts = confusion(first.y_true, first.outputs.argmax(axis=1), len(classes))
    return [
        heat_map("Confusion", classes, counts, "predicted", "true"),
        bars("Recall by class", classes, recalls, "recall"),
        lines("Calibration", [*calibrated, exact], "highest probability", "share that was right", square, square),
    ]


def _regression(spec: ModelSpec, models: Sequence[tuple[str, Scored]]) -> list[Html]:
    first = models[0][1]
    step = max(1, math.ceil(len(first.y_true) / 2000))  # a page with more points opens slowly and shows no more
    actual, said = first.y_true[::step], first.outputs[::step]
    errors = [(name, np.abs(one.outputs - one.y_true)) for name, one in models]
    shares = np.linspace(0, 1, 101)
    curves = [
        Series(name, np.quantile(error, shares).tolist(), shares.tolist(), COLOURS[i], dashed=i > 0)
        for i, (name, error) in enumerate(errors)
    ]
    cloud = Series("held-out rows", actual.tolist(), said.tolist())
    return [
        points("Predicted against actual", [cloud], f"actual {spec.data.target}", "predicted", diagonal=True),
        lines("Absolute error", curves, "absolute error", "share of rows within it", y=(0, 1)),
    ]


def _ranking(_spec: ModelSpec, models: Sequence[tuple[str, Scored]]) -> list[Html]:
    depths = list(range(1, models[0][1].outputs.items.shape[1] + 1))
    relevant, popular = models[0][1].y_true, models[0][1].outputs.baseline
    plots: list[Html] = []
    for title, per_user in (("NDCG@k", ndcg_per_user), ("Recall@k", recall_per_user)):
        curves = [
            Series(name, depths, [float(per_user(one.y_true, one.outputs.items, k).mean()) for k in depths], COLOURS[i])
            for i, (name, one) in enumerate(models)
        ]
        base = [float(per_user(relevant, popular, k).mean()) for k in depths]
        curves.append(Series("most popular", depths, base, "var(--soft)", dashed=True))
        top = max(max(one.y) for one in curves)
        plots.append(lines(title, curves, "k recommendations", title.split("@", maxsplit=1)[0].lower(), y=(0, top)))
    return plots


def roc_curve(y_true: NDArray[Any], score: NDArray[Any]) -> tuple[list[float], list[float]]:
    """Return false and true positive rates from (0, 0) to (1, 1), one point for each distinct score."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(y_true[order] == 1)[ends]
    misses = ends + 1 - hits
    up, down = max(int(hits[-1]), 1), max(int(misses[-1]), 1)
    return [0.0, *(misses / down).tolist()], [0.0, *(hits / up).tolist()]


def calibration(probability: NDArray[Any], right: NDArray[Any], bins: int = 10) -> tuple[list[float], list[float]]:
    """Return mean probability and share of `right` in each of `bins` equal parts of [0, 1] that holds rows."""
    where = np.minimum((probability * bins).astype(int), bins - 1)
    count = np.bincount(where, minlength=bins)
    known = count > 0
    given = np.bincount(where, probability, minlength=bins)[known] / count[known]
    share = np.bincount(where, right.astype(np.float64), minlength=bins)[known] / count[known]
    return given.tolist(), share.tolist()


def confusion(y_true: NDArray[Any], said: NDArray[Any], classes: int) -> list[list[int]]:
    """Return how often each true class (row) was predicted as each class (column)."""
    flat = np.bincount(y_true * classes + said, minlength=classes * classes)
    return flat.reshape(classes, classes).tolist()


def _shares(values: NDArray[Any], edges: NDArray[Any]) -> list[float]:
    counts = np.histogram(values, edges)[0]
    return (counts / max(len(values), 1)).tolist()


def _data(evidence: Evidence, spec: ModelSpec, frame: pd.DataFrame) -> Html:
    from pandas.api.types import is_numeric_dtype  # other reports use this module without pandas

    names = [name for name in spec.data.names() if name in frame]
    missing = int(frame[names].isna().to_numpy().sum())
    facts = definitions(
        [
            ("held-out rows", f"{len(frame):,}"),
            ("input columns", f"{len(names)} of {len(spec.data.names())} in the contract"),
            ("missing values", f"{missing:,} of {len(frame) * len(names):,}"),
            ("target", spec.data.target),
            ("dataset digest", code(f"sha256:{evidence.data_sha256}")),
        ]
    )
    rows: list[list[object]] = []
    for name in names:
        column = frame[name]
        gaps = f"{column.isna().mean():.1%}"
        if is_numeric_dtype(column.dtype):
            spread = [number(float(v)) for v in (column.min(), column.median(), column.max())]
        else:
            counts = column.value_counts()
            spread = [", ".join(f"{key} {count}" for key, count in counts.head(3).items()), "", ""]
        rows.append([name, *spread, gaps])
    columns = table(["column", "least", "median", "most", "missing"], rows, numeric=(1, 2, 3, 4))
    return join(facts, details(f"The {len(names)} input columns", columns))


def _origin(evidence: Evidence, sha256: str, run: Run) -> Html:
    dirty = run.tags.get("wharf.dirty") == "true"
    commit = join(code(evidence.commit), badge("uncommitted changes", "warn") if dirty else Html(""))
    entries: list[tuple[object, object]] = [
        ("MLflow run", code(run.id)),
        ("trained at commit", commit),
        ("finished", evidence.created),
        ("dataset", code(f"sha256:{evidence.data_sha256}")),
        ("artifact", code(f"sha256:{evidence.artifact_sha256}")),
        ("environment lock", code(f"sha256:{run.tags.get('wharf.lock_sha256', 'unknown')}")),
        ("evidence.json", code(f"sha256:{sha256}")),
    ]
    params = table(["parameter", "value"], [[name, value] for name, value in sorted(run.params.items())])
    return join(definitions(entries), details(f"{len(run.params)} training parameters", params))
