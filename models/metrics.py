"""The metrics of the gate, one definition for training, gate and monitoring.

`compute(task, metric, y_true, outputs)` takes, by task:

| task       | y_true                                         | outputs                                           |
|------------|------------------------------------------------|---------------------------------------------------|
| binary     | int [n], 0 or 1                                | float [n] probability of class 1, or float [n, 2] |
| multiclass | int [n], class index 0..k-1                    | float [n, k] probabilities                        |
| regression | float [n]                                      | float [n]                                         |
| ranking    | list of n int arrays: the liked items of users | `Ranked`: what was recommended to the same users  |

Plain numpy: a bootstrap calls these thousands of times. Where scikit-learn has the same metric the tests compare.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Relevant = Sequence[NDArray[np.integer[Any]]]

# Ratings from here on count as "liked". An item without a rating is unknown, not disliked.
LIKED = 4.0


@dataclass(frozen=True)
class Ranked:
    """Recommendations for n users, best first.

    `items` and `baseline` are item ids int64 [n, k], -1 where there was nothing left to recommend; `baseline` is the
    popularity ranking without what the user had seen. `catalogue` is the number of items that can be recommended.
    """

    items: Ints
    baseline: Ints
    catalogue: int


def compute(task: str, metric: str, y_true: Any, outputs: Any) -> float:
    """Return `metric` of `task`; shapes in the module's table.

    Returns nan where the metric is not defined on these rows (roc_auc or average_precision with one class only,
    r2 of a constant, a recall of a class without rows, ndcg_lift over a baseline of 0).
    Raises ValueError for NaN or infinite outputs, for lengths that differ and for no rows,
    KeyError for a metric that the task does not have.
    """
    if task == "ranking":
        if len(y_true) == 0 or len(y_true) != len(outputs.items):
            raise ValueError(f"{len(y_true)} users with held-out items, {len(outputs.items)} recommendations")
        return _RANKING[metric](y_true, outputs)
    truth, predicted = np.asarray(y_true), np.asarray(outputs, dtype=np.float64)
    if task == "binary" and predicted.ndim == 2:
        predicted = predicted[:, 1]
    if len(truth) == 0 or len(truth) != len(predicted):
        raise ValueError(f"{len(truth)} true values, {len(predicted)} predictions")
    if not np.isfinite(predicted).all():
        bad = int((~np.isfinite(predicted)).reshape(len(predicted), -1).any(axis=1).sum())
        raise ValueError(f"{bad} of {len(predicted)} predictions are NaN or infinite")
    if task == "regression":
        return _REGRESSION[metric](truth.astype(np.float64), predicted)
    return (_BINARY if task == "binary" else _MULTICLASS)[metric](truth.astype(np.int64), predicted)


def take(task: str, y_true: Any, outputs: Any, rows: Ints) -> tuple[Any, Any]:
    """Return `y_true` and `outputs` at `rows` (indices, repeats allowed): a slice or one bootstrap sample."""
    if task != "ranking":
        return np.asarray(y_true)[rows], np.asarray(outputs)[rows]
    return [y_true[i] for i in rows], Ranked(outputs.items[rows], outputs.baseline[rows], outputs.catalogue)


def liked_items(users: ArrayLike, items: ArrayLike, ratings: ArrayLike) -> tuple[Ints, list[Ints]]:
    """Return the users (ascending) with at least one liked item (rating 4 or more), and their liked items.

    Only such users can be scored: for the others no recommendation could ever be right.
    """
    liked = np.asarray(ratings, dtype=np.float64) >= LIKED
    who, what = np.asarray(users, dtype=np.int64)[liked], np.asarray(items, dtype=np.int64)[liked]
    order = np.lexsort((what, who))
    who, what = who[order], what[order]
    known, starts = np.unique(who, return_index=True)
    return known, [np.unique(part) for part in np.split(what, starts[1:])] if len(known) else []


def ndcg_per_user(relevant: Relevant, items: Ints, k: int = 10) -> Floats:
    """Return NDCG@k [n] with binary relevance.

    Järvelin and Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 20(4), 2002: gain 1 for a liked
    item, discount 1/log2(rank + 1), divided by the best that the user's number of liked items allows.
    """
    discount = 1 / np.log2(np.arange(2, k + 2))
    hits = _hits(relevant, items, k)
    ideal = np.cumsum(discount)[[min(len(part), k) - 1 for part in relevant]]
    return (hits * discount[: hits.shape[1]]).sum(axis=1) / ideal


def recall_per_user(relevant: Relevant, items: Ints, k: int = 10) -> Floats:
    """Return recall@k [n]: liked items among the first k, over min(k, number of liked items)."""
    return _hits(relevant, items, k).sum(axis=1) / [min(len(part), k) for part in relevant]


def _hits(relevant: Relevant, items: Ints, k: int) -> Floats:
    rows = [np.isin(ranked[:k], part) for ranked, part in zip(items, relevant, strict=True)]
    return np.asarray(rows, dtype=np.float64)


def _lift(relevant: Relevant, outputs: Ranked) -> float:
    base = float(ndcg_per_user(relevant, outputs.baseline).mean())
    return float(ndcg_per_user(relevant, outputs.items).mean()) / base if base > 0 else float("nan")


def _coverage(_relevant: Relevant, outputs: Ranked) -> float:
    shown = np.unique(outputs.items[:, :10])
    return float((shown >= 0).sum()) / outputs.catalogue


def _roc_auc(truth: Ints, score: Floats) -> float:
    """Mann-Whitney statistic with midranks for ties."""
    positive = int(truth.sum())
    negative = len(truth) - positive
    if positive == 0 or negative == 0:
        return float("nan")
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    midrank = np.cumsum(counts) - (counts - 1) / 2
    ranks = float(midrank[inverse][truth == 1].sum())
    return (ranks - positive * (positive + 1) / 2) / (positive * negative)


def _average_precision(truth: Ints, score: Floats) -> float:
    """Sum of precision times the step in recall over the distinct thresholds."""
    positive = int(truth.sum())
    if positive == 0 or positive == len(truth):
        return float("nan")
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    hits = np.cumsum(truth[order])[ends]
    return float((np.diff(hits, prepend=0) / positive * (hits / (ends + 1))).sum())


def _precision(truth: Ints, score: Floats) -> float:
    said = score >= 0.5
    return float(truth[said].mean()) if said.any() else 0.0


def _recall(truth: Ints, score: Floats) -> float:
    return float((score[truth == 1] >= 0.5).mean()) if (truth == 1).any() else float("nan")


def _f1(truth: Ints, score: Floats) -> float:
    said = score >= 0.5
    total = int(said.sum()) + int(truth.sum())
    return 2 * int((said & (truth == 1)).sum()) / total if total else 0.0


def _log_loss(truth: Ints, probabilities: Floats) -> float:
    table = np.column_stack([1 - probabilities, probabilities]) if probabilities.ndim == 1 else probabilities
    table = np.clip(table, 1e-15, 1.0)
    table = table / table.sum(axis=1, keepdims=True)
    return float(-np.log(table[np.arange(len(truth)), truth]).mean())


def _per_class(truth: Ints, probabilities: Floats) -> tuple[Floats, Floats, Floats]:
    """Return hits, said and true counts [k] of each class."""
    k, said = probabilities.shape[1], probabilities.argmax(axis=1)
    hits = np.bincount(truth[said == truth], minlength=k)
    return (
        hits.astype(float),
        np.bincount(said, minlength=k).astype(float),
        np.bincount(truth, minlength=k).astype(float),
    )


def _f1_macro(truth: Ints, probabilities: Floats) -> float:
    """Mean F1 over the classes that occur in the truth or in the predictions."""
    hits, said, true = _per_class(truth, probabilities)
    occurs = said + true > 0
    return float((2 * hits[occurs] / (said + true)[occurs]).mean())


def _recall_min(truth: Ints, probabilities: Floats) -> float:
    """The recall of the worst class among those with rows."""
    hits, _, true = _per_class(truth, probabilities)
    return float((hits[true > 0] / true[true > 0]).min())


def _r2(truth: Floats, value: Floats) -> float:
    spread = float(((truth - truth.mean()) ** 2).sum())
    return 1 - float(((truth - value) ** 2).sum()) / spread if spread > 0 else float("nan")


_BINARY: dict[str, Callable[[Ints, Floats], float]] = {
    "roc_auc": _roc_auc,
    "average_precision": _average_precision,
    "accuracy": lambda truth, score: float(((score >= 0.5) == (truth == 1)).mean()),
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "log_loss": _log_loss,
    "brier": lambda truth, score: float(((score - truth) ** 2).mean()),
}
_MULTICLASS: dict[str, Callable[[Ints, Floats], float]] = {
    "accuracy": lambda truth, table: float((table.argmax(axis=1) == truth).mean()),
    "f1_macro": _f1_macro,
    "recall_min": _recall_min,
    "log_loss": _log_loss,
}
_REGRESSION: dict[str, Callable[[Floats, Floats], float]] = {
    "rmse": lambda truth, value: float(np.sqrt(((truth - value) ** 2).mean())),
    "mae": lambda truth, value: float(np.abs(truth - value).mean()),
    "r2": _r2,
}
_RANKING: dict[str, Callable[[Relevant, Ranked], float]] = {
    "ndcg_at_10": lambda relevant, outputs: float(ndcg_per_user(relevant, outputs.items).mean()),
    "recall_at_10": lambda relevant, outputs: float(recall_per_user(relevant, outputs.items).mean()),
    "ndcg_lift": _lift,
    "coverage": _coverage,
}
