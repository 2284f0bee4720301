"""Run an exported model over held-out rows, through the loader that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ci import data
from models.metrics import Ranked, liked_items

if TYPE_CHECKING:
    from bentos.predictors import Predictor
    from models.spec import ModelSpec


def outputs(
    spec: ModelSpec, predictor: Predictor, folder: Path, frame: pd.DataFrame, depth: int = 10
) -> tuple[Any, Any]:
    """Return `(y_true, outputs)` for `models.metrics.compute`: what is true of `frame`, and what the model says.

    `frame`: input columns and target as in holdout.parquet; `folder`: the model folder (the popularity baseline of a
    ranking model is computed from its arrays); `depth`: how many items a ranking model recommends to a user.
    """
    if spec.task == "ranking":
        users, relevant = liked_items(frame["user"], frame["item"], frame["rating"])
        return relevant, rank(predictor, folder, users, depth)
    said = predictor.predict(data.matrix(spec, frame))
    target = frame[spec.data.target].to_numpy()
    if spec.task == "regression":
        return target, np.asarray(said.values, dtype=np.float64)
    table = np.asarray(said.probabilities, dtype=np.float64)
    return target.astype(np.int64), table[:, 1] if spec.task == "binary" else table


def rank(predictor: Predictor, folder: Path, users: NDArray[np.int64], depth: int) -> Ranked:
    """Recommend `depth` items to each of `users`, by the model and by popularity, both without what they rated.

    A user that the model does not know gets the most popular items from both.
    """
    with np.load(folder / "artifact.npz", allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    item_ids, indptr, seen = arrays["item_ids"], arrays["seen_indptr"], arrays["seen_items"]
    by_popularity = np.argsort(-arrays["popularity"], kind="stable")
    rows = {int(user): row for row, user in enumerate(arrays["user_ids"])}
    items = np.full((len(users), depth), -1, dtype=np.int64)
    baseline = items.copy()
    recommended, _, _ = predictor.recommend(users, depth)
    for i, user in enumerate(users.tolist()):
        items[i, : len(recommended[i])] = recommended[i]
        row = rows.get(user)
        rated = seen[indptr[row] : indptr[row + 1]] if row is not None else seen[:0]
        popular = item_ids[by_popularity[~np.isin(by_popularity, rated)][:depth]]
        baseline[i, : len(popular)] = popular
    return Ranked(items, baseline, catalogue=len(item_ids))


def with_predictions(spec: ModelSpec, predictor: Predictor, fitted: Any, frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with a column `prediction` (class index, value, or a ranking's score of the pair).

    Classifiers also get `score`: the probability of the positive class (binary) or the highest one (multiclass).
    `fitted`: the arrays of a ranking model, unused for the others.
    """
    if spec.task == "ranking":
        users = pd.Index(fitted["user_ids"]).get_indexer(pd.Index(frame["user"]))
        items = pd.Index(fitted["item_ids"]).get_indexer(pd.Index(frame["item"]))
        score = np.einsum("ij,ij->i", fitted["user_factors"][users], fitted["item_factors"][items])
        return frame.assign(prediction=(score + fitted["item_bias"][items]).astype(np.float64))
    said = predictor.predict(data.matrix(spec, frame))
    if said.values is not None:
        return frame.assign(prediction=said.values.astype(np.float64))
    table = np.asarray(said.probabilities, dtype=np.float64)
    return frame.assign(prediction=said.labels, score=table[:, 1] if spec.task == "binary" else table.max(axis=1))
