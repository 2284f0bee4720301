"""What the loader that serves says of the training rows: the reference that monitoring compares with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ci.training import data

if TYPE_CHECKING:
    from bentos.predictors import Predictor
    from models.spec import ModelSpec


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
