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

from ci.evidence import Interval

RESAMPLES = 1000
SEED = 20210  # any fixed number: gating the same run again gives the same intervals
_CELLS = 4_000_000  # weights held in memory at once
_MIN_DEFINED = 0.95  # a metric that too many resamples cannot compute (one class only) has no interval

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


def kernel(task: str, metric: str, y_true: NDArray[Any], outputs: Any) -> Kernel:
    """Return the weighted form of a metric of `models.spec.METRICS` for table models.

    `y_true`: class index int [n] or value float [n]. `outputs`: `labels` int [n], `probabilities` [n, classes],
    `values` [n]. With all weights 1 it gives what `models.metrics.compute` gives.
    """
    if task == "binary":
        return _binary(metric, y_true.astype(np.int64), outputs)
    if task == "multiclass":
        return _multiclass(metric, y_true.astype(np.int64), outputs)
    if task == "regression":
        return _regression(metric, y_true.astype(np.float64), outputs.values.astype(np.float64))
    raise KeyError(f"no weighted form of {task} {metric}")


def mean(per_row: Floats) -> Kernel:
    """Return the weighted mean of `per_row` [n]."""
    return lambda weights: weights @ per_row / weights.sum(axis=1)


def _binary(metric: str, y: NDArray[np.int64], outputs: Any) -> Kernel:
    score = outputs.probabilities[:, 1].astype(np.float64)
    said = outputs.labels == 1
    if metric == "roc_auc":
        return _roc_auc(y, score)
    if metric == "average_precision":
        return _average_precision(y, score)
    if metric == "accuracy":
        return mean((outputs.labels == y).astype(np.float64))
    if metric == "brier":
        return mean((score - y) ** 2)
    if metric == "log_loss":
        return mean(_row_log_loss(y, outputs.probabilities))
    hit, claimed, actual = ((flags).astype(np.float64) for flags in (said & (y == 1), said, y == 1))
    if metric == "precision":
        return lambda weights: _ratio(weights @ hit, weights @ claimed)
    if metric == "recall":
        return lambda weights: _ratio(weights @ hit, weights @ actual)
    if metric == "f1":
        return lambda weights: _ratio(2 * (weights @ hit), weights @ claimed + weights @ actual)
    raise KeyError(f"no weighted form of binary {metric}")


def _multiclass(metric: str, y: NDArray[np.int64], outputs: Any) -> Kernel:
    if metric == "accuracy":
        return mean((outputs.labels == y).astype(np.float64))
    if metric == "log_loss":
        return mean(_row_log_loss(y, outputs.probabilities))
    classes = outputs.probabilities.shape[1]
    actual = np.eye(classes)[y]  # [n, classes]
    claimed = np.eye(classes)[outputs.labels]
    hit = actual * claimed
    if metric == "recall_min":
        # A class without rows has no recall; it does not take part.
        return lambda weights: np.nanmin(_ratio(weights @ hit, weights @ actual, np.nan), axis=1)
    if metric == "f1_macro":
        return lambda weights: np.nanmean(
            _ratio(2 * (weights @ hit), weights @ actual + weights @ claimed, np.nan), axis=1
        )
    raise KeyError(f"no weighted form of multiclass {metric}")


def _regression(metric: str, y: Floats, said: Floats) -> Kernel:
    error = said - y
    if metric == "mae":
        return mean(np.abs(error))
    if metric == "rmse":
        square = mean(error**2)
        return lambda weights: np.sqrt(square(weights))
    if metric == "r2":
        # Spread about the mean of the resample; y is centred first, so that squares do not cancel.
        centred = y - y.mean()

        def r2(weights: Floats) -> Floats:
            total = weights @ centred**2 - (weights @ centred) ** 2 / weights.sum(axis=1)
            return 1 - _ratio(weights @ error**2, total, np.nan)

        return r2
    raise KeyError(f"no weighted form of regression {metric}")


def _ratio(above: Floats, below: Floats, otherwise: float = 0.0) -> Floats:
    return np.divide(above, below, out=np.full_like(above, otherwise), where=below > 0)


def _row_log_loss(y: NDArray[np.int64], probabilities: NDArray[Any]) -> Floats:
    """Return -log of the probability given to the true class, rows normalised and clipped as scikit-learn does."""
    given = probabilities.astype(np.float64)
    smallest = np.finfo(probabilities.dtype).eps
    given = np.clip(given / given.sum(axis=1, keepdims=True), smallest, 1 - smallest)
    return -np.log(given[np.arange(len(y)), y])


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
        return _ratio((hits * precision).sum(axis=1), hits.sum(axis=1), np.nan)

    return average_precision


def _group_starts(ordered: Floats) -> NDArray[np.intp]:
    """Return the positions where a new value begins in `ordered`."""
    return np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
