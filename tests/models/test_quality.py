"""Data quality: each rule, its line and its rate."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from models import quality
from models.spec import ModelSpec, parse
from tests.mlflow_server import ROOT

SPEC = parse((ROOT / "tests/fixtures/valid/model/binary.yaml").read_text(), "x", "tumor")


def changed(**data: object) -> ModelSpec:
    return SPEC.model_copy(update={"data": SPEC.data.model_copy(update=data)})


@pytest.fixture
def frame() -> pd.DataFrame:
    n = 100
    return pd.DataFrame(
        {"radius": np.linspace(0, 60, n), "site": ["left", "right"] * 50, "diagnosis": [0, 0, 1, 1] * 25}
    )


def test_good_data_has_no_fault(frame: pd.DataFrame) -> None:
    assert quality.faults(frame, SPEC) == []
    assert quality.rates(frame, SPEC)["radius"] == quality.Rates(0, 0, 0, 0)


def test_missing_column_and_its_likely_name(frame: pd.DataFrame) -> None:
    assert quality.faults(frame.rename(columns={"radius": "raduis"}), SPEC) == [
        "column 'radius': is not in the data (did you mean 'raduis'?)"
    ]
    assert quality.rates(frame.drop(columns="radius"), SPEC)["radius"].missing == 1


def test_missing_values(frame: pd.DataFrame) -> None:
    frame.loc[[3, 5, 7], "radius"] = np.nan
    assert quality.faults(frame, SPEC) == [
        "column 'radius': 3 of 100 values are missing: share 3.0%, at most 0.0% is allowed (max_missing)"
    ]
    assert quality.rates(frame, SPEC)["radius"].missing == pytest.approx(0.03)
    allowed = [SPEC.data.columns[0].model_copy(update={"max_missing": 0.03}), SPEC.data.columns[1]]
    assert quality.faults(frame, changed(columns=allowed)) == []


@pytest.mark.parametrize("bad", ["12.5", "many", np.inf])
def test_wrong_type(frame: pd.DataFrame, bad: object) -> None:
    frame["radius"] = frame["radius"].astype(object)
    frame.loc[4, "radius"] = bad
    assert quality.faults(frame, SPEC) == [
        f"column 'radius': 1 of 100 values are not finite numbers, the first in row 4: {bad!r}"
    ]
    assert quality.rates(frame, SPEC)["radius"].wrong_type == pytest.approx(0.01)


def test_a_whole_column_of_text(frame: pd.DataFrame) -> None:
    frame["radius"] = frame["radius"].astype(str)
    assert quality.faults(frame, SPEC) == [
        "column 'radius': 100 of 100 values are not finite numbers, the first in row 0: '0.0'"
    ]


def test_range(frame: pd.DataFrame) -> None:
    frame.loc[[1, 2], "radius"] = [-1.0, 61.0]
    assert quality.faults(frame, SPEC) == [
        "column 'radius': 1 of 100 values are below min 0.0, the first in row 1: -1.0",
        "column 'radius': 1 of 100 values are above max 60.0, the first in row 2: 61.0",
    ]
    assert quality.rates(frame, SPEC)["radius"].out_of_range == pytest.approx(0.02)


def test_whole_numbers(frame: pd.DataFrame) -> None:
    columns = [SPEC.data.columns[0].model_copy(update={"type": "int"}), SPEC.data.columns[1]]
    frame["radius"] = np.arange(100) % 50
    assert quality.faults(frame, changed(columns=columns)) == []
    frame["radius"] = frame["radius"].astype(float)
    assert quality.faults(frame, changed(columns=columns)) == []
    frame.loc[8, "radius"] = 8.5
    assert quality.faults(frame, changed(columns=columns)) == [
        "column 'radius': 1 of 100 values are not whole numbers, the first in row 8: 8.5"
    ]


def test_unknown_category(frame: pd.DataFrame) -> None:
    frame.loc[6, "site"] = "middle"
    assert quality.faults(frame, SPEC) == [
        "column 'site': 1 of 100 values are not allowed ones, the first in row 6: 'middle'"
    ]
    assert quality.rates(frame, SPEC)["site"].unknown_value == pytest.approx(0.01)


def test_rows_and_repeats(frame: pd.DataFrame) -> None:
    assert quality.faults(frame.head(10), SPEC) == ["10 rows, at least 50 are needed (data.min_rows)"]
    assert quality.faults(frame.head(0), changed(min_rows=1)) == ["0 rows, at least 1 are needed (data.min_rows)"]
    twice = pd.concat([frame, frame.head(5)], ignore_index=True)
    assert quality.faults(twice, changed(max_duplicates=0.0)) == [
        "5 of 105 rows repeat an earlier row: 4.8%, at most 0.0% are allowed (data.max_duplicates)"
    ]


def test_target(frame: pd.DataFrame) -> None:
    assert quality.faults(frame.assign(diagnosis=0), SPEC) == ["target 'diagnosis': class 'malignant' has no row"]
    frame.loc[2, "diagnosis"] = 2
    assert quality.faults(frame, SPEC) == [
        "target 'diagnosis': 1 of 100 values are not class indices 0 to 1, the first in row 2: 2"
    ]
    frame["diagnosis"] = frame["diagnosis"].astype(float)
    frame.loc[2, "diagnosis"] = np.nan
    assert quality.faults(frame, SPEC) == ["target 'diagnosis': 1 of 100 values are missing"]


def test_rates_of_no_rows(frame: pd.DataFrame) -> None:
    assert quality.rates(frame.head(0), SPEC)["radius"] == quality.Rates(0, 0, 0, 0)
