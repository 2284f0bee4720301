"""What the model says of one part: a small Arrow table, a row for each readable row of the part.

Only this is kept between runs, not the rows themselves: they are in the input.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bentos.predictors import Outputs, Predictor
from bentos.schema import ServingSpec
from ci.batching import encode
from ci.batching.arrow import DataType, Table
from ci.batching.source import Part

# Rows given to the model at once: a layer of 128 floats for each is then 4 MB, which stays near the processor.
_ROWS = 8192
_NOT_FINITE = "the prediction is not a finite number"


def added(spec: ServingSpec) -> list[tuple[str, DataType]]:
    """Return name and type of the columns that hold what a model for this task says."""
    if spec.task == "ranking":
        items, scores = pa.list_(pa.int64()), pa.list_(pa.float32())
        return [("prediction", items), ("score", scores), ("known", pa.bool_())]
    if spec.task == "regression":
        return [("prediction", pa.float32())]
    return [("prediction", pa.string()), ("probability", pa.float32())]


@dataclass(frozen=True)
class Said:
    """The predictions of a part; a rejected row has a reason and nulls."""

    table: Table  # the columns of `added`, then `reason`

    @property
    def outside(self) -> dict[str, int]:
        """How many values of each column are outside of what training allowed; they are predicted all the same."""
        return dict(json.loads((self.table.schema.metadata or {}).get(b"outside", b"{}")))


def predict(predictor: Predictor, part: Part, k: int) -> Said:
    """Return what the model says of every row of `part`; `k` items for each user of a ranking model."""
    if predictor.spec.task == "ranking":
        return _recommend(predictor, part, k)
    rows, reasons = encode.matrix(part.table, predictor.spec.columns)
    good = reasons.good
    chosen = np.ascontiguousarray(rows if good.all() else rows[good])
    columns = _outputs(predictor, chosen)
    finite = np.isfinite(columns[-1])
    if not finite.all():
        place = np.flatnonzero(good)[~finite]
        mask = np.zeros(len(rows), bool)
        mask[place] = True
        reasons.add(mask, lambda _: _NOT_FINITE)
        columns, chosen = [column[finite] for column in columns], chosen[finite]
    spec, good = predictor.spec, reasons.good
    arrays = [pa.array(_spread(column, good), mask=~good) for column in columns]
    if spec.task != "regression":
        names = pa.array(spec.classes, pa.string())
        arrays[0] = names.take(arrays[0])
    return _said(spec, arrays, reasons, _outside(spec, chosen))


def _outputs(predictor: Predictor, rows: NDArray[np.float32]) -> list[NDArray[Any]]:
    """Return class index and probability, or the value, of each row."""
    said = [predictor.predict(rows[i : i + _ROWS]) for i in range(0, len(rows), _ROWS)]
    pairs = [_columns(predictor.spec, outputs) for outputs in said]
    if not pairs:
        empty = np.empty(0, np.float32)
        return [empty] if predictor.spec.task == "regression" else [np.empty(0, np.int64), empty]
    return [np.concatenate(column) for column in zip(*pairs, strict=True)]


def _columns(spec: ServingSpec, outputs: Outputs) -> list[NDArray[Any]]:
    if outputs.values is not None:
        return [outputs.values]
    labels, probabilities = outputs.labels, outputs.probabilities
    assert labels is not None and probabilities is not None  # what a predictor of a classification task gives
    # A row with one bad number is bad, also where it is not that of the answer.
    bad = ~np.isfinite(probabilities).all(axis=1)
    chosen = probabilities[:, 1] if spec.task == "binary" else probabilities.max(axis=1)
    return [labels, np.where(bad, np.float32(np.nan), chosen).astype(np.float32)]


def _spread(values: NDArray[Any], good: NDArray[np.bool_]) -> NDArray[Any]:
    """Return `values`, one for each good row, at the places of these rows."""
    if len(values) == len(good):
        return values
    wide = np.zeros(len(good), values.dtype)
    wide[good] = values
    return wide


def _outside(spec: ServingSpec, rows: NDArray[np.float32]) -> dict[str, int]:
    low = np.array([-np.inf if c.minimum is None else c.minimum for c in spec.columns], np.float32)
    high = np.array([np.inf if c.maximum is None else c.maximum for c in spec.columns], np.float32)
    counts = ((rows < low) | (rows > high)).sum(axis=0)
    return {spec.names[i]: int(counts[i]) for i in np.flatnonzero(counts)}


def _recommend(predictor: Predictor, part: Part, k: int) -> Said:
    users, reasons = encode.users(part.table)
    items, scores, known = predictor.recommend(users, k)
    bad = np.fromiter((not np.isfinite(row).all() for row in scores), bool, len(scores))
    reasons.add(bad & reasons.good, lambda _: _NOT_FINITE)
    good = reasons.good.tolist()
    arrays = [
        pa.array([row if ok else None for row, ok in zip(items, good, strict=True)], pa.list_(pa.int64())),
        pa.array([row if ok else None for row, ok in zip(scores, good, strict=True)], pa.list_(pa.float32())),
        pa.array(known, mask=~reasons.good),
    ]
    return _said(predictor.spec, arrays, reasons, {})


def _said(spec: ServingSpec, arrays: list[Any], reasons: encode.Reasons, outside: dict[str, int]) -> Said:
    told = reasons.by_row()
    words = pa.array(
        [told.get(i) for i in range(len(reasons.good))] if told else [None] * len(reasons.good), pa.string()
    )
    fields = [*added(spec), ("reason", pa.string())]
    table = pa.table([*arrays, words], schema=pa.schema(fields))
    return Said(table.replace_schema_metadata({"outside": json.dumps(outside)}))
