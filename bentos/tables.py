"""Table models: `{"rows": [...]}` to predictions. A row is an object by column name or a list in schema order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bentos.inputs import Answer, Fault, Refused, fault, fields_of, near, shown, unprocessable
from bentos.predictors import Predictor
from bentos.schema import Column

_NUMBERS = {float, int}
_FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Rows:
    """Valid input: what the model sees and what the log keeps."""

    matrix: NDArray[np.float32]  # [n, columns] in schema order, categories as their index, missing as NaN
    logged: Any  # the same values as they were sent: the matrix itself, or lists where there are categories


class TableHandler:
    """Validates rows against the schema of `predictor` and predicts."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor, self._spec = predictor, predictor.spec
        columns = self._spec.columns
        self._names = self._spec.names
        self._known = set(self._names)
        self._pick: Callable[[Any], Any] = itemgetter(*self._names)
        # Only numbers, none of them missing: the common case is checked without a Python loop over values.
        self._plain = len(columns) > 1 and all(c.type != "category" for c in columns)
        self._whole = np.array([i for i, c in enumerate(columns) if c.type == "int"], np.intp)
        self._low = np.array([-np.inf if c.minimum is None else c.minimum for c in columns], np.float32)
        self._high = np.array([np.inf if c.maximum is None else c.maximum for c in columns], np.float32)

    def answer(self, body: Any) -> Answer:
        rows = self.read(fields_of(body, "rows")["rows"])
        outputs = self._predictor.predict(rows.matrix)
        if not outputs.finite():
            numbers = outputs.values if outputs.probabilities is None else outputs.probabilities
            bad = np.flatnonzero(~np.isfinite(cast(Any, numbers).reshape(len(rows.matrix), -1)).all(axis=1)).tolist()
            faults = [fault("rows", i, msg="the prediction is not a finite number") for i in bad[:20]]
            raise Refused(500, f"the model gave no finite number for {len(bad)} of {len(rows.matrix)} rows", faults)
        outside = self._outside(rows.matrix)
        if outputs.values is not None:
            values = outputs.values.tolist()
            logged = {"rows": rows.logged, "predictions": outputs.values, "scores": outputs.values}
            return Answer({"predictions": outputs.values}, logged, values=values, outside=outside)
        labels, probabilities = cast(Any, outputs.labels), cast(Any, outputs.probabilities)
        predictions = [self._spec.classes[i] for i in labels.tolist()]
        scores = probabilities[:, 1].copy() if self._spec.task == "binary" else probabilities.max(axis=1)
        return Answer(
            {"predictions": predictions, "probabilities": probabilities},
            {"rows": rows.logged, "predictions": predictions, "scores": scores},
            classes=Counter(predictions) if len(predictions) > 1 else {predictions[0]: 1},
            outside=outside,
        )

    def example(self, size: int) -> dict[str, Any]:
        return {"rows": [{column.name: example_value(column) for column in self._spec.columns}] * size}

    def read(self, rows: Any) -> Rows:
        """Return `rows` as the model's matrix; raises Refused (422) that names row and column."""
        if not isinstance(rows, list):
            raise unprocessable([fault("rows", msg=f"must be a list of rows, not {shown(rows)}")])
        if not rows:
            raise unprocessable([fault("rows", msg="is empty: send at least one row")])
        if len(rows) > self._spec.max_rows:
            raise unprocessable([fault("rows", msg=f"has {len(rows)} rows, at most {self._spec.max_rows} are taken")])
        matrix = self._fast(rows) if self._plain else None
        return self._careful(rows) if matrix is None else Rows(matrix, matrix)

    def _fast(self, rows: list[Any]) -> NDArray[np.float32] | None:
        """Return the matrix of rows that are plainly right, None when a closer look is needed."""
        width, kinds = len(self._names), set[type]()
        if type(rows[0]) is dict:
            try:
                if any(len(row) != width for row in rows):
                    return None
                rows = [self._pick(row) for row in rows]
            except (KeyError, TypeError):
                return None
        for row in rows:
            if type(row) is not tuple and type(row) is not list:
                return None
            kinds.update(map(type, row))
        if not kinds <= _NUMBERS:
            return None
        try:
            with np.errstate(over="ignore"):
                matrix = np.array(rows, np.float32)
        except (ValueError, OverflowError):
            return None
        if matrix.ndim != 2 or matrix.shape[1] != width or not np.isfinite(matrix).all():
            return None
        whole = matrix[:, self._whole]
        return None if self._whole.size and (whole != np.floor(whole)).any() else matrix

    def _careful(self, rows: list[Any]) -> Rows:
        """Look at every value; raises Refused with the place of each fault."""
        faults: list[Fault] = []
        encoded: list[list[float]] = []
        logged: list[list[Any]] = []
        for i, row in enumerate(rows):
            values = self._in_order(i, row, faults)
            if values is not None:
                columns = zip(self._spec.columns, values, strict=True)
                encoded.append([_encode(column, value, i, faults) for column, value in columns])
                logged.append(values)
        if faults:
            raise unprocessable(faults)
        return Rows(np.array(encoded, np.float32), logged)

    def _in_order(self, i: int, row: Any, faults: list[Fault]) -> list[Any] | None:
        """Return the values of `row` in schema order; appends to `faults` and returns None when it is misshapen."""
        if isinstance(row, list):
            if len(cast(list[Any], row)) == len(self._names):
                return cast(list[Any], row)
            msg = f"has {len(cast(list[Any], row))} values, the schema has {len(self._names)} columns"
            faults.append(fault("rows", i, msg=msg))
            return None
        if not isinstance(row, dict):
            faults.append(fault("rows", i, msg=f"must be an object or a list, not {shown(row)}"))
            return None
        given = cast(dict[str, Any], row)
        missing = [c.name for c in self._spec.columns if c.name not in given and not c.nullable]
        for name in given:
            if name not in self._known:
                faults.append(fault("rows", i, name, msg=f"unknown column{near(name, missing or self._names)}"))
        faults.extend(fault("rows", i, name, msg="is missing") for name in missing)
        return None if missing else [given.get(name) for name in self._names]

    def _outside(self, matrix: NDArray[np.float32]) -> dict[str, int]:
        """Count by column the values outside of what training allowed."""
        beyond = (matrix < self._low) | (matrix > self._high)  # a comparison with NaN is False
        if not beyond.any():
            return {}
        counts = beyond.sum(axis=0)
        return {self._names[i]: int(counts[i]) for i in np.flatnonzero(counts)}


def example_value(column: Column) -> float | int | str:
    """Return a value that `column` accepts: the middle of its range, or its first category."""
    if column.values:
        return column.values[0]
    low, high = column.minimum, column.maximum
    middle = (low + high) / 2 if low is not None and high is not None else low if low is not None else high or 0.0
    return int(middle) if column.type == "int" else middle


def _encode(column: Column, value: Any, i: int, faults: list[Fault]) -> float:
    """Return what the model sees of `value`; appends to `faults` when it does not fit."""
    if value is None:
        if not column.nullable:
            faults.append(fault("rows", i, column.name, msg="must not be null"))
        return float("nan")
    if column.values is not None:
        if isinstance(value, str) and value in column.values:
            return float(column.values.index(value))
        hint = near(value, column.values) if isinstance(value, str) else ""
        allowed = ", ".join(column.values[:10]) + (", …" if len(column.values) > 10 else "")
        faults.append(fault("rows", i, column.name, msg=f"must be one of {allowed}, not {shown(value)}{hint}"))
        return float("nan")
    if type(value) not in _NUMBERS:
        faults.append(fault("rows", i, column.name, msg=f"must be a number, not {shown(value)}"))
    elif column.type == "int" and value != int(value):
        faults.append(fault("rows", i, column.name, msg=f"must be a whole number, not {shown(value)}"))
    elif abs(value) > _FLOAT32_MAX:
        faults.append(fault("rows", i, column.name, msg=f"is too large for a 32-bit float: {shown(value)}"))
    else:
        return float(value)
    return float("nan")
