"""Uncertainty of the gate's metrics by the bootstrap, for 1,000 resamples in about the time of one loop pass.

A resample of n rows with replacement is the same as n whole-number weights that add up to n, so a metric over all
resamples is matrix arithmetic on `weights` [resamples, n]. Intervals are percentile intervals (Efron & Tibshirani,
An Introduction to the Bootstrap, 1993, chapter 13). Two models are compared on the same resamples (paired), which
takes the luck of the held-out rows out of their difference.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ci.gating.evidence import Interval
from models.metrics import ndcg_per_user, recall_per_user

RESAMPLES = 1000
SEED = 20210  # any fixed number: gating the same run again gives the same intervals
_CELLS = 4_000_000  # weights held in memory at once
_MIN_DEFINED = 0.95  # a metric that too many resamples cannot compute (one class only) has no interval
# The share of the catalogue that is shown is a figure of all users together: a resample, which holds each user 63 % of
# the time, always shows less, so its percentiles say nothing.
NOT_RESAMPLED = {("ranking", "coverage")}

Floats = NDArray[np.float64]
Kernel = Callable[[Floats], Floats]  # weights [b, n] -> metric of each resample [b], NaN where undefined


def resample(rows: int, resamples: int = RESAMPLES, seed: int = SEED) -> Generator[Floats]:
    """Yield the weights of `resamples` bootstrap samples in blocks [b, rows]; same arguments, same weights."""
    random = np.random.default_rng(seed)
    block = max(1, min(resamples, _CELLS // max(rows, 1)))
    done = 0
    while done < resamples:
        size = min(block, resamples - done)
        drawn = random.integers(0, rows, (size, rows)) + np.arange(size)[:, None] * rows
        yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)
        done += size


def distribution(kernel: Kernel, rows: int, resamples: int = RESAMPLES, seed: int = SEED) -> Floats:
    """Return the metric of each resample [resamples], NaN where it is undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.concatenate([kernel(weights) for weights in resample(rows, resamples, seed)])


def percentiles(values: Floats, confidence: float) -> tuple[float, float] | None:
    """Return the two-sided percentile interval of `values`, None when too many of them are undefined."""
    defined = values[np.isfinite(values)]
    if len(defined) == 0 or len(defined) < _MIN_DEFINED * len(values):
        return None
    tail = (1 - confidence) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)


def interval(value: float, values: Floats, confidence: float = 0.95) -> Interval:
    """Return `value` with the percentile interval of its bootstrap distribution `values`."""
    bounds = percentiles(values, confidence)
    return Interval(value) if bounds is None else Interval(value, *bounds)


def kernel(task: str, metric: str, y_true: Any, outputs: Any) -> Kernel:
    """Return the weighted form of a metric of `models.spec.METRICS`.

    `y_true` and `outputs` are what `models.metrics.compute` takes, and with all weights 1 the result is the same.
    A row of a ranking model is a user. Raises KeyError for an unknown metric and for those in `NOT_RESAMPLED`.
    """
    if task == "binary":
        score = np.asarray(outputs, dtype=np.float64)
        return _binary(metric, np.asarray(y_true, np.int64), score if score.ndim == 1 else score[:, 1])
    if task == "multiclass":
        return _multiclass(metric, np.asarray(y_true, np.int64), np.asarray(outputs, dtype=np.float64))
    if task == "regression":
        return _regression(metric, np.asarray(y_true, np.float64), np.asarray(outputs, dtype=np.float64))
    if task == "ranking":
        return _ranking(metric, y_true, outputs)
    raise KeyError(task)


def mean(per_row: Floats) -> Kernel:
    """Return the weighted mean of `per_row` [n]."""
    return lambda weights: weights @ per_row / weights.sum(axis=1)


def _binary(metric: str, y: NDArray[np.int64], score: Floats) -> Kernel:
    said = score >= 0.5
    hit, claimed, actual = (flags.astype(np.float64) for flags in (said & (y == 1), said, y == 1))
    kernels: dict[str, Callable[[], Kernel]] = {
        "roc_auc": lambda: _roc_auc(y, score),
        "average_precision": lambda: _average_precision(y, score),
        "accuracy": lambda: mean((said == (y == 1)).astype(np.float64)),
        "brier": lambda: mean((score - y) ** 2),
        "log_loss": lambda: mean(_row_log_loss(y, np.column_stack([1 - score, score]))),
        "precision": lambda: lambda weights: _ratio(weights @ hit, weights @ claimed),
        "recall": lambda: lambda weights: _ratio(weights @ hit, weights @ actual, np.nan),
        "f1": lambda: lambda weights: _ratio(2 * (weights @ hit), weights @ claimed + weights @ actual),
    }
    return kernels[metric]()


def _multiclass(metric: str, y: NDArray[np.int64], probabilities: Floats) -> Kernel:
    classes = np.eye(probabilities.shape[1])
    said = probabilities.argmax(axis=1)
    actual, claimed = classes[y], classes[said]  # [n, classes]
    hit = actual * claimed
    kernels: dict[str, Callable[[], Kernel]] = {
        "accuracy": lambda: mean((said == y).astype(np.float64)),
        "log_loss": lambda: mean(_row_log_loss(y, probabilities)),
        # A class without rows has no recall, and one that is neither true nor said no F1: they do not take part.
        "recall_min": lambda: lambda weights: np.nanmin(_ratio(weights @ hit, weights @ actual, np.nan), axis=1),
        "f1_macro": lambda: (
            lambda weights: np.nanmean(
                _ratio(2 * (weights @ hit), weights @ actual + weights @ claimed, np.nan), axis=1
            )
        ),
    }
    return kernels[metric]()


def _regression(metric: str, y: Floats, said: Floats) -> Kernel:
    square = (said - y) ** 2
    centred = y - y.mean()  # so that the squares below do not cancel

    def r2(weights: Floats) -> Floats:
        spread = weights @ centred**2 - (weights @ centred) ** 2 / weights.sum(axis=1)
        return 1 - _ratio(weights @ square, spread, np.nan)

    kernels: dict[str, Kernel] = {
        "mae": mean(np.abs(said - y)),
        "rmse": lambda weights: np.sqrt(mean(square)(weights)),
        "r2": r2,
    }
    return kernels[metric]


def _ranking(metric: str, relevant: Any, ranked: Any) -> Kernel:
    def lift() -> Kernel:
        ours, base = ndcg_per_user(relevant, ranked.items), ndcg_per_user(relevant, ranked.baseline)
        return lambda weights: _ratio(weights @ ours, weights @ base, np.nan)

    kernels: dict[str, Callable[[], Kernel]] = {
        "ndcg_at_10": lambda: mean(ndcg_per_user(relevant, ranked.items)),
        "recall_at_10": lambda: mean(recall_per_user(relevant, ranked.items)),
        "ndcg_lift": lift,
    }
    return kernels[metric]()


def _ratio(above: Floats, below: Floats, otherwise: float = 0.0) -> Floats:
    return np.divide(above, below, out=np.full_like(above, otherwise), where=below > 0)


def _row_log_loss(y: NDArray[np.int64], probabilities: Floats) -> Floats:
    """Return -log of the probability given to the true class, as `models.metrics` clips and normalises it."""
    given = np.clip(probabilities, 1e-15, 1.0)
    return -np.log((given / given.sum(axis=1, keepdims=True))[np.arange(len(y)), y])


def _roc_auc(y: NDArray[np.int64], score: Floats) -> Kernel:
    """Area under the ROC curve as the weighted Mann-Whitney statistic, ties counting half."""
    order = np.argsort(score, kind="stable")
    first = _group_starts(score[order])
    positive, negative = (y[order] == 1).astype(np.float64), (y[order] == 0).astype(np.float64)

    def auc(weights: Floats) -> Floats:
        sorted_weights = weights[:, order]
        up = np.add.reduceat(sorted_weights * positive, first, axis=1)
        down = np.add.reduceat(sorted_weights * negative, first, axis=1)
        below = np.cumsum(down, axis=1) - down
        return _ratio((up * (below + down / 2)).sum(axis=1), up.sum(axis=1) * down.sum(axis=1), np.nan)

    return auc


def _average_precision(y: NDArray[np.int64], score: Floats) -> Kernel:
    """Mean of precision over the steps of recall, from the highest score down, as scikit-learn defines it."""
    order = np.argsort(-score, kind="stable")
    first = _group_starts(score[order])
    positive = (y[order] == 1).astype(np.float64)

    def average_precision(weights: Floats) -> Floats:
        sorted_weights = weights[:, order]
        hits = np.add.reduceat(sorted_weights * positive, first, axis=1)
        named = np.cumsum(np.add.reduceat(sorted_weights, first, axis=1), axis=1)
        precision = _ratio(np.cumsum(hits, axis=1), named)
        found = hits.sum(axis=1)
        missing = found == weights.sum(axis=1)  # positives only: every order is right
        return np.where(missing, np.nan, _ratio((hits * precision).sum(axis=1), found, np.nan))

    return average_precision


def _group_starts(ordered: Floats) -> NDArray[np.intp]:
    """Return the positions where a new value begins in `ordered`."""
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
