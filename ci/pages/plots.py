"""The plots that a person wants to see of a training run, as PNG files; the same run gives the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models.metrics import ndcg_per_user, recall_per_user

if TYPE_CHECKING:
    from models.spec import ModelSpec

_BLUE, _GREY = "#2563eb", "#9ca3af"


def draw(spec: ModelSpec, y_true: Any, outputs: Any, train: pd.DataFrame, folder: Path) -> list[str]:
    """Write the plots of a run to `folder` and return their file names.

    `y_true` and `outputs` of the held-out rows as for `models.metrics.compute`; `train`: the training rows.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"data": _data(spec, train)}
    if spec.task == "binary":
        pictures["roc_calibration"] = _roc_and_calibration(np.asarray(y_true), np.asarray(outputs))
    elif spec.task == "multiclass":
        pictures["confusion"] = _confusion(np.asarray(y_true), np.asarray(outputs), spec.data.classes or [])
    elif spec.task == "regression":
        pictures["residuals"] = _residuals(np.asarray(y_true), np.asarray(outputs))
    else:
        pictures["ranking"] = _ranking(y_true, outputs)
    for name, figure in pictures.items():
        FigureCanvasAgg(figure)
        # Without the name of the software, whose version would change the bytes.
        figure.savefig(folder / f"{name}.png", dpi=100, metadata={"Software": None})
    return [f"{name}.png" for name in pictures]


def _roc_and_calibration(truth: Any, score: Any) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    roc, calibration = figure.subplots(1, 2)
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # one point a distinct threshold
    hits = np.cumsum(truth[order])[ends]
    false = ends + 1 - hits
    positive, negative = max(int(truth.sum()), 1), max(int((1 - truth).sum()), 1)
    roc.plot(np.append(0, false / negative), np.append(0, hits / positive), color=_BLUE)
    roc.plot([0, 1], [0, 1], color=_GREY, linestyle=":")
    roc.set(title="ROC, held-out rows", xlabel="false positive rate", ylabel="true positive rate")
    bins = np.clip((score * 10).astype(int), 0, 9)
    counts = np.bincount(bins, minlength=10)
    filled = counts > 0
    said = np.bincount(bins, weights=score, minlength=10)[filled] / counts[filled]
    seen = np.bincount(bins, weights=truth, minlength=10)[filled] / counts[filled]
    calibration.plot([0, 1], [0, 1], color=_GREY, linestyle=":")
    calibration.scatter(said, seen, s=20 + 200 * counts[filled] / counts.max(), color=_BLUE, alpha=0.7)
    calibration.set(title="Calibration (area: rows)", xlabel="predicted probability", ylabel="observed share")
    return figure


def _confusion(truth: Any, table: Any, classes: list[str]) -> Figure:
    size = len(classes)
    counts = np.zeros((size, size), dtype=int)
    np.add.at(counts, (truth, table.argmax(axis=1)), 1)
    figure = Figure(figsize=(max(4.5, 0.5 * size), max(4.0, 0.45 * size)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for i, j in np.argwhere(counts > 0):
        axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="white" if i == j else "black", fontsize=8)
    axes.set_xticks(range(size), classes, rotation=45 if max(map(len, classes)) > 3 else 0)
    axes.set_yticks(range(size), classes)
    axes.set(title="Confusion, held-out rows", xlabel="predicted", ylabel="true")
    return figure


def _residuals(truth: Any, value: Any) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.scatter(truth, value, s=6, alpha=0.4, color=_BLUE)
    ends = [float(min(truth.min(), value.min())), float(max(truth.max(), value.max()))]
    left.plot(ends, ends, color=_GREY, linestyle=":")
    left.set(title="Held-out rows", xlabel="true", ylabel="predicted")
    right.hist(value - truth, bins=40, color=_BLUE)
    right.set(title="Residuals", xlabel="predicted - true", ylabel="rows")
    return figure


def _ranking(relevant: Any, ranked: Any) -> Figure:
    depth = range(1, ranked.items.shape[1] + 1)
    figure = Figure(figsize=(9, 4), layout="constrained")
    for axes, score, name in zip(
        figure.subplots(1, 2), (ndcg_per_user, recall_per_user), ("NDCG", "recall"), strict=True
    ):
        axes.plot(depth, [score(relevant, ranked.items, k).mean() for k in depth], color=_BLUE, label="model")
        axes.plot(depth, [score(relevant, ranked.baseline, k).mean() for k in depth], color=_GREY, label="popularity")
        axes.set(
            title=f"{name}@k, held-out users", xlabel="k", ylim=(0, None), xticks=[1, *range(5, len(depth) + 1, 5)]
        )
        axes.legend()
    return figure


def _data(spec: ModelSpec, train: pd.DataFrame) -> Figure:
    """Draw how the target is distributed, and how the inputs spread relative to their median."""
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    target = train[spec.data.target].to_numpy(dtype=float)
    if spec.data.classes:
        counts = np.bincount(target.astype(int), minlength=len(spec.data.classes))
        left.bar(spec.data.classes, counts, color=_BLUE)
    else:
        left.hist(target, bins=40, color=_BLUE)
    left.set(title=f"{spec.data.target}: {len(train):,} training rows", ylabel="rows")
    if spec.task == "ranking":
        for name in ("user", "item"):
            counts = np.sort(train[name].value_counts().to_numpy())[::-1]
            right.plot(np.arange(1, len(counts) + 1), counts, label=f"{len(counts):,} {name}s")
        filled = len(train) / (train["user"].nunique() * train["item"].nunique())
        right.set(title=f"Ratings each, {filled:.1%} of all pairs", xscale="log", yscale="log", xlabel="rank")
        right.legend()
        return figure
    numeric = [name for name, column in spec.data.by_name().items() if column.type != "category"][:64]
    quantiles = np.nanquantile(train[numeric].to_numpy(dtype=float), [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
    spread = np.where(quantiles[3] > quantiles[1], quantiles[3] - quantiles[1], 1.0)
    low, q1, _, q3, high = (quantiles - quantiles[2]) / spread
    places = np.arange(len(numeric))
    right.hlines(places, low, high, color=_GREY, linewidth=1)
    right.hlines(places, q1, q3, color=_BLUE, linewidth=3)
    right.set_yticks(places if len(numeric) <= 32 else [], numeric if len(numeric) <= 32 else [], fontsize=6)
    right.set(title="Inputs: 5, 25, 75 and 95 % from the median", xlabel="interquartile ranges")
    return figure
