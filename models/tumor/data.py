"""Breast Cancer Wisconsin (Diagnostic): 569 rows that ship with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.datasets import load_breast_cancer


def load(source: Path | None) -> pd.DataFrame:
    """Return 30 float columns by their schema names and `diagnosis`: 0 benign, 1 malignant.

    `source`: None for the built-in data, or a CSV file with these columns (class names instead of 0 and 1 are fine).
    """
    if source is not None:
        return pd.read_csv(source)
    measurements: Any
    benign: Any
    measurements, benign = load_breast_cancer(return_X_y=True, as_frame=True)
    frame = measurements.rename(columns=lambda name: name.replace(" ", "_"))
    # scikit-learn counts benign as 1; here the positive class is the one that must not be missed.
    return frame.assign(diagnosis=1 - benign)
