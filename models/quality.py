"""Data quality: what the contract's column rules say about a table of rows.

`faults` is for people (one line a fault), `rates` for monitoring (shares by column), `keeps_rules` picks rows. All look
at the same rules: type, range, allowed values, missing share; `faults` also at the target, the number of rows and
repeated rows.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from models.spec import Column, ModelSpec

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Rates:
    """Shares (0..1) of a column's rows that break a rule."""

    missing: float
    wrong_type: float
    out_of_range: float
    unknown_value: float


@dataclass(frozen=True)
class _Check:
    """Row masks of one column: every row is in at most one of them."""

    missing: Mask
    wrong_type: Mask
    below: Mask
    above: Mask
    unknown: Mask


def faults(frame: pd.DataFrame, spec: ModelSpec) -> list[str]:
    """Return one line for each broken rule, naming the column and the number of rows; empty when all is well.

    `frame` holds the input columns and the target as data.py gives them (class targets as the index in
    `data.classes`); columns that the contract does not name are not looked at.
    """
    data, rows = spec.data, len(frame)
    lines = [
        f"column '{name}': is not in the data{_near(name, frame)}"
        for name in dict.fromkeys([*data.names(), data.target])
        if name not in frame
    ]
    if rows < data.min_rows:
        lines.append(f"{rows} rows, at least {data.min_rows} are needed (data.min_rows)")
    if lines or rows == 0:
        return lines
    for name, column in data.by_name().items():
        lines += _column_faults(name, column, frame[name])
    if spec.task != "ranking":
        lines += _target_faults(spec, frame[data.target])
    repeated = float(frame[list(dict.fromkeys([*data.names(), data.target]))].duplicated().mean())
    if repeated > data.max_duplicates:
        share = f"{repeated:.1%}, at most {data.max_duplicates:.1%} are allowed (data.max_duplicates)"
        lines.append(f"{round(repeated * rows)} of {rows} rows repeat an earlier row: {share}")
    return lines


def keeps_rules(frame: pd.DataFrame, spec: ModelSpec) -> Mask:
    """Return which rows [n] keep the rules of every input column; missing is a break where max_missing is 0."""
    good = np.ones(len(frame), dtype=bool)
    for name, column in spec.data.by_name().items():
        check = _check(column, frame[name])
        good &= ~(check.wrong_type | check.below | check.above | check.unknown)
        if column.max_missing == 0:
            good &= ~check.missing
    return good


def rates(frame: pd.DataFrame, spec: ModelSpec) -> dict[str, Rates]:
    """Return the shares of broken rules of every input column; a column that is not there is all missing."""
    result: dict[str, Rates] = {}
    for name, column in spec.data.by_name().items():
        if name not in frame:
            result[name] = Rates(1.0, 0.0, 0.0, 0.0)
        elif len(frame) == 0:
            result[name] = Rates(0.0, 0.0, 0.0, 0.0)
        else:
            check = _check(column, frame[name])
            shares = [check.missing, check.wrong_type, check.below | check.above, check.unknown]
            result[name] = Rates(*(float(mask.mean()) for mask in shares))
    return result


def _check(column: Column, values: pd.Series) -> _Check:
    missing = values.isna().to_numpy(dtype=bool)
    nowhere = np.zeros(len(values), dtype=bool)
    if column.type == "category":
        known = values.isin(column.values or []).to_numpy(dtype=bool)
        return _Check(missing, nowhere, nowhere, nowhere, ~missing & ~known)
    numbers = _numbers(values)
    finite = np.isfinite(numbers)
    wrong = ~missing & ~finite
    if column.type == "int":
        wrong |= finite & (numbers != np.floor(numbers))
    usable = finite & ~wrong
    below = usable & (numbers < column.min) if column.min is not None else nowhere
    above = usable & (numbers > column.max) if column.max is not None else nowhere
    return _Check(missing, wrong, below, above, nowhere)


def _numbers(values: pd.Series) -> NDArray[np.float64]:
    """Return the values as float64, NaN where there is no number; text is no number, even '1.5'."""
    if pd.api.types.is_numeric_dtype(values.dtype):
        return values.to_numpy(dtype=np.float64, na_value=np.nan)
    is_number = values.map(lambda value: isinstance(value, (int, float, np.number))).to_numpy(dtype=bool)
    numbers = np.full(len(values), np.nan)
    numbers[is_number] = values[is_number].to_numpy(dtype=np.float64)
    return numbers


def _column_faults(name: str, column: Column, values: pd.Series) -> list[str]:
    check, lines = _check(column, values), list[str]()
    share = check.missing.mean()
    if share > column.max_missing:
        allowed = f"share {share:.1%}, at most {column.max_missing:.1%} is allowed (max_missing)"
        lines.append(f"{int(check.missing.sum())} of {len(values)} values are missing: {allowed}")
    lines += _broken(values, check.wrong_type, "not whole numbers" if column.type == "int" else "not finite numbers")
    lines += _broken(values, check.below, f"below min {column.min}")
    lines += _broken(values, check.above, f"above max {column.max}")
    lines += _broken(values, check.unknown, "not allowed ones")
    return [f"column '{name}': {line}" for line in lines]


def _target_faults(spec: ModelSpec, values: pd.Series) -> list[str]:
    missing = values.isna().to_numpy(dtype=bool)
    numbers, classes = _numbers(values), spec.data.classes
    if missing.any():
        lines = [f"{int(missing.sum())} of {len(values)} values are missing"]
    elif classes is None:
        lines = _broken(values, ~np.isfinite(numbers), "not finite numbers")
    else:
        indices = np.arange(len(classes))
        lines = _broken(values, ~np.isin(numbers, indices), f"not class indices 0 to {len(classes) - 1}") or [
            f"class '{classes[index]}' has no row" for index in indices if not (numbers == index).any()
        ]
    return [f"target '{spec.data.target}': {line}" for line in lines]


def _broken(values: pd.Series, mask: Mask, what: str) -> list[str]:
    """Return the line `<count> of <rows> values are <what>, the first in row 3: 'x'`, or none."""
    if not mask.any():
        return []
    row = int(np.flatnonzero(mask)[0])
    value = values.iloc[row]
    shown = value.item() if isinstance(value, np.generic) else value
    return [f"{int(mask.sum())} of {len(values)} values are {what}, the first in row {row}: {shown!r}"[:160]]


def _near(name: str, frame: pd.DataFrame) -> str:
    near = difflib.get_close_matches(name, [str(column) for column in frame], n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
