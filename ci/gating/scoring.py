"""What a served artifact says of the held-out rows, in the shape that `models.metrics` takes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bentos.predictors import Predictor, load
from bentos.schema import Column
from models.metrics import Ranked, liked_items
from models.spec import ModelSpec

DEPTH = 20  # recommendations asked for each user: metrics look at the first 10, the report's curves at all


class Unusable(Exception):
    """The held-out rows, or an artifact, cannot be scored; the text is one line."""


@dataclass(frozen=True)
class Scored:
    """A loaded model and what it said: `y_true` and `outputs` as `models.metrics.compute` takes them."""

    task: str
    predictor: Predictor
    y_true: Any
    outputs: Any
    inputs: NDArray[Any]  # float32 [n, d] rows, or int64 [n] users
    finite: int  # how many of the n rows got finite predictions only

    @property
    def rows(self) -> int:
        """How many rows (users of a ranking model) were scored."""
        return len(self.inputs)


def score(folder: Path, sha256: str, frame: pd.DataFrame, spec: ModelSpec) -> Scored:
    """Load the model folder (its artifact must have `sha256`) and predict for the held-out rows `frame`.

    Raises ArtifactError when the artifact is not usable, Unusable when it does not fit the rows or the contract.
    """
    predictor = load(folder, sha256)
    if predictor.spec.task != spec.task:
        raise Unusable(f"the artifact is for the task {predictor.spec.task}, the contract says {spec.task}")
    if list(predictor.spec.classes) != list(spec.data.classes or []):
        raise Unusable("the artifact has other classes, or another order of them, than data.classes")
    return predicted(predictor, folder, frame, spec)


def predicted(predictor: Predictor, folder: Path, frame: pd.DataFrame, spec: ModelSpec) -> Scored:
    """Predict for the rows `frame` with a model that is loaded from `folder`; raises Unusable as `score` does."""
    if spec.task == "ranking":
        return _recommended(predictor, folder, frame)
    rows = matrix(frame, predictor.spec.columns)
    y_true = targets(frame, spec)
    said = predictor.predict(rows)
    outputs: Any = said.values if spec.task == "regression" else said.probabilities
    if outputs is None or len(outputs) != len(rows):
        raise Unusable(f"the artifact gave {0 if outputs is None else len(outputs)} predictions for {len(rows)} rows")
    if spec.task == "binary":
        outputs = outputs[:, 1]
    good = np.isfinite(outputs if outputs.ndim == 2 else outputs[:, None]).all(axis=1)
    return Scored(spec.task, predictor, y_true, outputs.astype(np.float64), rows, int(good.sum()))


def targets(frame: pd.DataFrame, spec: ModelSpec) -> NDArray[Any]:
    """Return the true class indexes int64 [n] or values float64 [n]; raises Unusable for anything else."""
    name = spec.data.target
    if name not in frame:
        raise Unusable(f"column '{name}', the target, is not in the held-out rows")
    if not pd.api.types.is_numeric_dtype(frame[name].dtype):
        raise Unusable(f"column '{name}', the target, is {frame[name].dtype}, not a number")
    values = frame[name].to_numpy(np.float64, na_value=np.nan)
    if not np.isfinite(values).all():
        raise Unusable(f"column '{name}', the target, has {int((~np.isfinite(values)).sum())} missing values")
    if spec.task == "regression":
        return values
    classes = len(spec.data.classes or [])
    if ((values != np.round(values)) | (values < 0) | (values >= classes)).any():
        raise Unusable(f"column '{name}', the target, has values that are no index of the {classes} classes")
    return values.astype(np.int64)


def matrix(frame: pd.DataFrame, columns: tuple[Column, ...]) -> NDArray[np.float32]:
    """Return `frame` as the model gets it: float32 [n, d] in schema order, categories as their index.

    Raises Unusable for a missing column, an unknown category, or a missing value where none is allowed.
    """
    parts: list[NDArray[np.float32]] = []
    for column in columns:
        if column.name not in frame:
            raise Unusable(f"column '{column.name}' is not in the held-out rows")
        values = frame[column.name]
        missing = values.isna().to_numpy()
        if missing.any() and not column.nullable:
            raise Unusable(f"column '{column.name}' has {int(missing.sum())} missing values, the contract allows none")
        if column.values is None:
            parts.append(values.to_numpy(np.float32, na_value=np.nan))
            continue
        codes = pd.Index(column.values).get_indexer(pd.Index(values.astype("object"))).astype(np.float32)
        unknown = (codes < 0) & ~missing
        if unknown.any():
            raise Unusable(f"column '{column.name}' has the unknown category '{values[unknown].iloc[0]}'")
        parts.append(np.where(missing, np.float32(np.nan), codes))
    return np.ascontiguousarray(np.column_stack(parts), np.float32)


def _recommended(predictor: Predictor, folder: Path, frame: pd.DataFrame) -> Scored:
    for name in ("user", "item", "rating"):
        if name not in frame:
            raise Unusable(f"column '{name}' is not in the held-out rows")
    users, relevant = liked_items(frame["user"], frame["item"], frame["rating"])
    if len(users) == 0:
        raise Unusable("no user has a liked item among the held-out rows")
    items, scores, _ = predictor.recommend(users, DEPTH)
    finite = sum(bool(np.isfinite(part).all()) for part in scores)
    baseline, catalogue = _popular(folder / predictor.spec.file, users)
    ranked = Ranked(_padded(items), baseline, catalogue)
    return Scored("ranking", predictor, relevant, ranked, users, finite)


def _padded(items: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    table = np.full((len(items), DEPTH), -1, np.int64)
    for row, part in enumerate(items):
        table[row, : len(part)] = part
    return table


def _popular(path: Path, users: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Return the most popular items that each user had not rated in training [n, DEPTH], and the number of items."""
    with np.load(path, allow_pickle=False) as arrays:
        ids, popularity = arrays["item_ids"].astype(np.int64), arrays["popularity"]
        rows = {int(user): row for row, user in enumerate(arrays["user_ids"])}
        indptr, seen = arrays["seen_indptr"], arrays["seen_items"]
    order = np.argsort(-popularity, kind="stable")
    best: list[NDArray[np.int64]] = []
    for user in users.tolist():
        row = rows.get(user)
        rated = seen[indptr[row] : indptr[row + 1]] if row is not None else seen[:0]
        first = order[: DEPTH + len(rated)]
        best.append(ids[first[~np.isin(first, rated)][:DEPTH]])
    return _padded(best), len(ids)


def part(scored: Scored, frame: pd.DataFrame, rows: NDArray[np.bool_]) -> tuple[Any, Any, int]:
    """Return `y_true`, `outputs` and their number for the held-out rows where `rows` is true.

    A ranking model's rows are users: those with a liked item among these held-out rows, judged by these items only.
    """
    if scored.task != "ranking":
        return scored.y_true[rows], scored.outputs[rows], int(rows.sum())
    chosen = frame[rows]
    users, relevant = liked_items(chosen["user"], chosen["item"], chosen["rating"])
    where = np.searchsorted(scored.inputs, users)
    ranked = scored.outputs
    return relevant, Ranked(ranked.items[where], ranked.baseline[where], ranked.catalogue), len(users)
