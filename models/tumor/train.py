"""Logistic regression on standardised measurements: few rows, nearly separable, probabilities that mean something."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler


def fit(frame: pd.DataFrame, params: Mapping[str, Any], seed: int) -> Pipeline:
    """Return a classifier of 0 (benign) and 1 (malignant), fitted on all columns of `frame` but `diagnosis`.

    `params`: C (inverse of the L2 penalty's strength) and max_iter.
    """
    model = make_pipeline(
        StandardScaler(), LogisticRegression(C=params["C"], max_iter=params["max_iter"], random_state=seed)
    )
    return model.fit(frame.drop(columns="diagnosis").to_numpy(), frame["diagnosis"].to_numpy())
