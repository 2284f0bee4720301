"""Rows of a table as the model sees them, and why some of them cannot be: the rules of serving, by column."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bentos.inputs import near
from bentos.schema import Column
from ci.batching.arrow import Table, Values, pc

MOST_REASONS = 3  # of one row: a wrong row needs the first few
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(inf|infinity)", re.ASCII | re.IGNORECASE)
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})  # of a number, as pandas and databases write it
_INT64 = 2.0**63


class Reasons:
    """Why rows are rejected, by their place in the part."""

    def __init__(self, rows: int) -> None:
        self._counts = np.zeros(rows, np.int8)
        self._words: dict[int, list[str]] = {}

    def add(self, mask: NDArray[np.bool_], word: Callable[[int], str]) -> None:
        """Note `word(place)` for every row of `mask` that has not enough reasons yet."""
        for place in np.flatnonzero(mask & (self._counts < MOST_REASONS)).tolist():
            self._words.setdefault(place, []).append(word(place))
            self._counts[place] += 1

    @property
    def good(self) -> NDArray[np.bool_]:
        return self._counts == 0

    def by_row(self) -> dict[int, str]:
        return {place: "; ".join(words) for place, words in self._words.items()}


def matrix(table: Table, columns: tuple[Column, ...]) -> tuple[NDArray[np.float32], Reasons]:
    """Return float32 [rows, columns] in schema order (categories as their index, missing as NaN) and what is wrong.

    A row with a reason holds whatever; the caller leaves it out.
    """
    reasons = Reasons(len(table))
    made = np.empty((len(table), len(columns)), np.float32)
    for i, column in enumerate(columns):
        values = table[column.name]
        if column.values is not None:
            made[:, i] = _codes(values, column, reasons)
        else:
            with np.errstate(over="ignore"):
                made[:, i] = _checked(*numbers(values, column.name, reasons), column, reasons)
    return made, reasons


def users(table: Table) -> tuple[NDArray[np.int64], Reasons]:
    """Return the column `user` as int64 [rows], and what is wrong; a wrong row holds 0."""
    reasons, values = Reasons(len(table)), table["user"]
    if pa.types.is_integer(values.type) and not values.null_count:
        wide = pa.types.is_uint64(values.type)
        found = values.to_numpy()
        reasons.add(found >= _INT64 if wide else np.zeros(len(table), bool), lambda _: "user: is too large")
        return np.where(reasons.good, found, 0).astype(np.int64), reasons
    if pa.types.is_string(values.type):
        try:  # not by way of a float, which would round the ids beyond 2^53
            return values.cast(pa.int64()).to_numpy(), reasons
        except pa.ArrowInvalid:
            pass
    found, missing = numbers(values, "user", reasons)
    reasons.add(missing, lambda _: "user: is missing")
    whole = (found == np.floor(found)) & (np.abs(found) < _INT64)
    reasons.add(reasons.good & ~whole, lambda i: f"user: must be a whole number, not {found[i]:g}")
    return np.where(reasons.good, found, 0.0).astype(np.int64), reasons


def numbers(values: Values, name: str, reasons: Reasons) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return a column of numbers as float64, and which are missing (NaN). Text that is no number is noted, and NaN."""
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pa.types.is_string(values.type):
        return _parsed(values, name, reasons)
    found = np.asarray(values.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    return found, np.isnan(found)


def _parsed(values: Values, name: str, reasons: Reasons) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    empty = pc.equal(values, "")
    try:
        read = pc.if_else(empty, pa.scalar(None, pa.string()), values).cast(pa.float64())
        found = np.asarray(read.to_numpy(), np.float64)
        return found, np.isnan(found)
    except pa.ArrowInvalid:
        pass  # something is no number, or is written with blanks around it: look at each
    words: list[str] = [word.strip() for word in values.to_pylist()]
    missing = np.fromiter((word.lower() in _MISSING for word in words), bool, len(words))
    good = np.fromiter((_NUMBER.fullmatch(word) is not None for word in words), bool, len(words))
    reasons.add(~good & ~missing, lambda i: f"{name}: must be a number, not {_shown(words[i])}")
    found = [float(word) if ok else math.nan for word, ok in zip(words, good.tolist(), strict=True)]
    return np.array(found, np.float64), missing


def _checked(
    found: NDArray[np.float64], missing: NDArray[np.bool_], column: Column, reasons: Reasons
) -> NDArray[np.float64]:
    """Note what the contract does not allow."""
    finite = np.isfinite(found)
    if not finite.all():
        if not column.nullable:
            reasons.add(missing, lambda _: f"{column.name}: is missing")
        reasons.add(np.isinf(found), lambda i: f"{column.name}: must be a finite number, not {found[i]:g}")
    if column.type == "int":
        broken = finite & (found != np.floor(found))
        reasons.add(broken, lambda i: f"{column.name}: must be a whole number, not {found[i]:g}")
    large = finite & (np.abs(found) > _FLOAT32_MAX)
    reasons.add(large, lambda i: f"{column.name}: is too large for a 32-bit float: {found[i]:g}")
    return found


def _codes(values: Values, column: Column, reasons: Reasons) -> NDArray[np.float32]:
    allowed = column.values or ()
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    found = pc.index_in(values.cast(pa.string()), value_set=pa.array(allowed, pa.string()))
    absent = pc.fill_null(pc.equal(values.cast(pa.string()), ""), True) if "" not in allowed else pc.is_null(values)
    unknown = np.asarray(found.is_null().to_numpy(), bool)
    missing = np.asarray(absent.to_numpy(), bool) & unknown
    if not column.nullable:
        reasons.add(missing, lambda _: f"{column.name}: is missing")
    listed = ", ".join(allowed[:10]) + (", …" if len(allowed) > 10 else "")

    def word(i: int) -> str:
        value = str(values[i].as_py())
        return f"{column.name}: must be one of {listed}, not {_shown(value)}{near(value, allowed)}"

    reasons.add(unknown & ~missing, word)
    return np.asarray(found.cast(pa.float32()).to_numpy(), np.float32)


def _shown(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 40 else f"{shown[:40]}…"


def typed(values: Values, kind: str) -> Any:
    """Return text that was read from CSV as an Arrow array of its own type: numbers for `float` and `int`."""
    if kind == "category":
        return values
    found, _ = numbers(values, "", Reasons(len(values)))
    return pa.array(found, from_pandas=True).cast(pa.int64() if kind == "int" else pa.float64(), safe=False)
