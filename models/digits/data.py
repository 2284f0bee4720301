"""Optical recognition of handwritten digits: 1,797 images of 8 by 8 pixels that ship with scikit-learn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.datasets import load_digits


def load(source: Path | None) -> pd.DataFrame:
    """Return the columns pixel_0 … pixel_63 (0 to 16, row by row) and `digit`, 0 to 9.

    `source`: None for the built-in data, or a CSV file with these columns.
    """
    if source is not None:
        return pd.read_csv(source)
    images: Any
    digits: Any
    images, digits = load_digits(return_X_y=True)
    return pd.DataFrame(images, columns=[f"pixel_{i}" for i in range(64)]).assign(digit=digits)
