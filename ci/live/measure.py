"""What a window of live traffic shows against the training reference: drift, quality, performance, service.

Pure functions of what was read; `ci.monitor` reads, writes and alerts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ci.live.drift import Feature, FeatureDrift, Method, compare
from ci.live.prediction_log import PredictionLog
from ci.live.reference import RankingReference, TableReference
from models.metrics import Ranked, compute
from models.spec import METRICS, Column, DriftRule, ModelSpec

PREDICTION_PSI = 0.25  # what is read as a shift (see ci.live.drift.psi), unless the contract's default rule is PSI
OUT_OF_RANGE = 0.01  # share of rows outside of a column's min and max that is worth a call
ERROR_RATE = 0.01  # share of requests answered with 5xx
REFUSED_RATE = 0.05  # share of requests refused with 4xx: a caller sends what the contract does not allow
SERVICE_MIN_REQUESTS = 100  # fewer say nothing about a rate of one percent


@dataclass(frozen=True)
class Rate:
    """A share that should stay at or below `bound`."""

    name: str  # of the column, or `requests`
    check: str  # missing | wrong type | out of range | unknown category | failed | refused | unknown user
    value: float
    bound: float | None  # None: shown only
    beyond: bool


@dataclass(frozen=True)
class Performance:
    """Metrics of the labelled rows of the window; None for one that the log cannot give."""

    labelled_rows: int
    metrics: dict[str, float | None]
    note: str = ""


@dataclass(frozen=True)
class Service:
    """Requests in the window, and their durations as the service measured them (milliseconds)."""

    requests: int
    answered: int
    refused: int
    failed: int
    error_rate: float
    p50_ms: float | None
    p99_ms: float | None
    errors: dict[str, int]


def rule_of(spec: ModelSpec, name: str) -> DriftRule:
    """Return the drift rule of an input column."""
    return spec.drift.features.get(name, spec.drift.default)


def feature_of(spec: ModelSpec, name: str, column: Column) -> Feature:
    """Return how a column is compared: a default rule that does not apply to its type is the nearest that does."""
    rule = rule_of(spec, name)
    method: Method = rule.method
    if column.values and method == "ks":
        method = "chi2"
    elif not column.values and method == "chi2":
        method = "psi"
    return Feature(name, method, rule.threshold, len(column.values) if column.values else None)


def features_of(spec: ModelSpec) -> list[Feature]:
    """Return how every input column of a table model is compared, in schema order."""
    return [feature_of(spec, name, column) for name, column in spec.data.by_name().items()]


def table_drift(spec: ModelSpec, reference: TableReference, log: PredictionLog) -> list[FeatureDrift]:
    """Compare every input column, both sides as the float32 that the model sees: 0.1 must equal a logged 0.1."""
    return compare(_single(reference.values), _single(log.values), features_of(spec), min_rows=spec.drift.min_rows)


def _single(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.astype(np.float32).astype(np.float64)


def prediction_drift(spec: ModelSpec, reference: TableReference, log: PredictionLog) -> list[FeatureDrift]:
    """Compare what was predicted: shares of classes, or the distribution of values.

    The score is compared too, and shown only: on the rows it was trained on a model is surer than on any others.
    """
    if not len(reference.predictions):
        return []
    threshold = spec.drift.default.threshold if spec.drift.default.method == "psi" else PREDICTION_PSI
    levels = len(spec.data.classes) if spec.data.classes else None
    found = compare(
        reference.predictions[:, None],
        predicted_codes(spec, log)[:, None],
        [Feature("prediction", "psi", threshold, levels)],
        min_rows=spec.drift.min_rows,
    )
    if len(reference.scores) and spec.task != "regression":
        score = Feature("score", "psi", None)
        found += compare(reference.scores[:, None], log.scores[:, None], [score], min_rows=spec.drift.min_rows)
    return found


def predicted_codes(spec: ModelSpec, log: PredictionLog) -> NDArray[np.float64]:
    """Return the predictions of the log as float64 [n]: class index (-1 for a name not in the contract) or value."""
    if spec.data.classes is None:
        return np.array(log.predictions, dtype=np.float64)
    codes = {name: float(code) for code, name in enumerate(spec.data.classes)}
    return np.array([codes.get(str(value), -1.0) for value in log.predictions], dtype=np.float64)


def ranking_drift(
    spec: ModelSpec, reference: RankingReference, log: PredictionLog
) -> tuple[list[FeatureDrift], list[FeatureDrift]]:
    """Compare who asks and what is recommended; returns (input drift, prediction drift).

    `user`: how many items the users who ask have rated (0 for an unknown one), against the users that rated in
    training, each as often as it rated. `item`: the popularity of the recommended items, against what the model
    recommends to the users it knows.
    """
    rated = np.array(list(reference.activity.values()), dtype=np.int64)
    asked = np.array([reference.activity.get(user, 0) for user in log.users.tolist()], dtype=np.float64)
    popularity = reference.popularity
    offered = np.array([popularity.get(item, 0.0) for item in reference.recommended.tolist()], dtype=np.float64)
    given = np.array([popularity.get(item, 0.0) for items in log.predictions for item in items], dtype=np.float64)
    columns = spec.data.by_name()
    user, item = (feature_of(spec, name, columns[name]) for name in ("user", "item"))
    return (
        compare(
            np.repeat(rated, rated)[:, None].astype(np.float64), asked[:, None], [user], min_rows=spec.drift.min_rows
        ),
        compare(offered[:, None], given[:, None], [item], min_rows=spec.drift.min_rows),
    )


def quality(spec: ModelSpec, log: PredictionLog) -> list[Rate]:
    """Return the shares of rows that break a rule of the contract and are not zero, column by column.

    The rules are those of `models.quality.rates`, here on the logged matrix and without pandas.
    """
    if log.rows == 0:
        return []
    columns = list(spec.data.by_name().items())
    values = _single(log.values)
    missing = np.isnan(values)
    rates: list[Rate] = []
    for i, (name, column) in enumerate(columns):
        here, absent = values[:, i], missing[:, i]
        broken: dict[str, Any] = {}
        if column.values:
            broken["unknown category"] = ~absent & (here < 0)
        else:
            wrong = np.isinf(here) | (~absent & (here != np.floor(here)) if column.type == "int" else False)
            broken["wrong type"] = wrong
            low = -np.inf if column.min is None else np.float32(column.min)
            high = np.inf if column.max is None else np.float32(column.max)
            broken["out of range"] = ~wrong & ((here < low) | (here > high))
        found = [("missing", absent, column.max_missing)]
        found += [(check, mask, OUT_OF_RANGE) for check, mask in broken.items()]
        rates += [_rate(name, check, mask.mean(), bound) for check, mask, bound in found if mask.any()]
    return rates


def _rate(name: str, check: str, value: Any, bound: float | None) -> Rate:
    return Rate(name, check, float(value), bound, bound is not None and float(value) > bound)


def unknown_users(reference: RankingReference, log: PredictionLog) -> list[Rate]:
    """Return the share of users that the model does not know; shown only, new users are the normal case."""
    if log.rows == 0:
        return []
    known = np.isin(log.users, np.fromiter(reference.activity, dtype=np.int64))
    return [_rate("user", "unknown user", 1 - known.mean(), None)]


def coverage(reference: RankingReference, log: PredictionLog) -> dict[str, float]:
    """Return the share of the catalogue that was recommended, in the window and to the reference users."""
    catalogue = max(len(reference.popularity), 1)
    seen = {item for items in log.predictions for item in items}
    return {
        "coverage": len(seen & set(reference.popularity)) / catalogue,
        "reference_coverage": len(np.unique(reference.recommended)) / catalogue,
    }


def service(log: PredictionLog) -> Service:
    """Return request counts, error rate and latency quantiles of the window."""
    kinds = Counter((log.status // 100).tolist())
    good = log.ms[log.status < 400]
    return Service(
        requests=len(log.status),
        answered=kinds[2],
        refused=kinds[4],
        failed=kinds[5],
        error_rate=kinds[5] / len(log.status) if len(log.status) else 0.0,
        p50_ms=float(np.quantile(good, 0.5)) if len(good) else None,
        p99_ms=float(np.quantile(good, 0.99)) if len(good) else None,
        errors=log.errors,
    )


def service_rates(found: Service) -> list[Rate]:
    """Return the failed and refused shares of requests, judged from `SERVICE_MIN_REQUESTS` on."""
    if not found.requests:
        return []
    enough = found.requests >= SERVICE_MIN_REQUESTS
    return [
        _rate("requests", "failed", found.failed / found.requests, ERROR_RATE if enough else None),
        _rate("requests", "refused", found.refused / found.requests, REFUSED_RATE if enough else None),
    ]


def table_performance(
    spec: ModelSpec, log: PredictionLog, rows: NDArray[np.int64], labels: list[list[Any]]
) -> Performance:
    """Return the metrics of the labelled rows `rows` [k] with their `labels` [k] (the last of each list counts).

    The log keeps one score a row: of a multiclass model the label is known and not all probabilities, so its log_loss
    is None. A label outside of the contract is left out and counted in the note.
    """
    truth = coded_labels(spec, [found[-1] for found in labels])
    good = ~np.isnan(truth)
    note = f"{int((~good).sum())} labels do not fit the contract and were left out" if not good.all() else ""
    at, truth = rows[good], truth[good]
    if spec.task == "regression":
        outputs = predicted_codes(spec, log)[at]
    elif spec.task == "binary":
        outputs = log.scores[at]
    else:
        codes = predicted_codes(spec, log)[at].astype(np.int64)
        outputs = np.eye(len(spec.data.classes or ()))[codes]
        outputs[codes < 0] = np.nan  # a class that the contract no longer has
    scored = np.isfinite(outputs) if outputs.ndim == 1 else np.isfinite(outputs).all(axis=1)
    truth, outputs = truth[scored], outputs[scored]
    if not len(truth):
        return Performance(0, {}, note)
    metrics: dict[str, float | None] = {}
    for metric in METRICS[spec.task]:
        known = not (spec.task == "multiclass" and metric == "log_loss")
        value = compute(spec.task, metric, truth, outputs) if known else float("nan")
        metrics[metric] = value if np.isfinite(value) else None
    return Performance(len(truth), metrics, note)


def coded_labels(spec: ModelSpec, labels: list[Any]) -> NDArray[np.float64]:
    """Return labels as float64 [n]: class index or value, NaN for one that the contract does not allow."""
    if spec.data.classes is not None:
        codes = {name: float(code) for code, name in enumerate(spec.data.classes)}
        return np.array([codes.get(str(label), float("nan")) for label in labels], dtype=np.float64)
    return np.array(
        [float(label) if isinstance(label, int | float) else float("nan") for label in labels], dtype=np.float64
    )


def ranking_performance(
    reference: RankingReference, log: PredictionLog, rows: NDArray[np.int64], labels: list[list[Any]]
) -> Performance:
    """Return hit rate, NDCG@10 and recall@10 of users whose chosen items came later as labels.

    Hit rate: the share of these users with at least one chosen item in the list they were shown.
    """
    if not len(rows):
        return Performance(0, {})
    chosen = [np.unique(np.array(found, dtype=np.int64)) for found in labels]
    shown = np.full((len(rows), 10), -1, dtype=np.int64)
    for i, row in enumerate(rows.tolist()):
        items = log.predictions[row][:10]
        shown[i, : len(items)] = items
    ranked = Ranked(shown, np.full_like(shown, -1), max(len(reference.popularity), 1))
    hits = [
        not set(log.predictions[row]).isdisjoint(found.tolist())
        for row, found in zip(rows.tolist(), chosen, strict=True)
    ]
    metrics: dict[str, float | None] = {"hit_rate": float(np.mean(hits))}
    metrics |= {name: compute("ranking", name, chosen, ranked) for name in ("ndcg_at_10", "recall_at_10")}
    short = int((shown[:, -1] < 0).sum())
    return Performance(len(rows), metrics, f"{short} lists were shorter than 10 items" if short else "")
