"""The newer data of a retraining: logged rows that got a label, as a frame that training can add to its source."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ci.console import say
from ci.live.prediction_log import join, read, read_labels
from ci.live.reference import schema_of
from ci.workspace import Workspace
from models import quality

if TYPE_CHECKING:
    from ci.live.prediction_log import Labels, PredictionLog
    from models.spec import Column, ModelSpec

MAX_ROWS = 100_000  # of the log; the newest


def assemble(workspace: Workspace, spec: ModelSpec, environment: str) -> pd.DataFrame:
    """Return the labelled rows among the newest `MAX_ROWS` logged ones: input columns and target.

    Which version answered does not matter. The target of a classifier is the class index. Repeated rows are kept
    once, and the order depends on the content only: the same labels always give the same frame, so an interrupted
    retraining finds its run again. Of a ranking model each chosen item becomes a row with the highest rating that the
    contract allows, at the time of its label.

    A service answers rows whose values break the contract's column rules (and counts them); such rows are left out
    here, with a line that says how many: one of them must not stop every retraining.
    """
    log = read(workspace.predictions(environment, spec.name), schema_of(spec), max_rows=MAX_ROWS)
    ranking = spec.task == "ranking"
    labels = read_labels(workspace.labels(environment, spec.name), several=ranking)
    at, known = join(log, labels)
    frame = _choices(spec, log, labels, at, known) if ranking else _rows(spec, log, at, known)
    good = quality.keeps_rules(frame, spec)
    if not good.all():
        say(f"  {int((~good).sum())} of {len(frame)} labelled rows break a column rule of the contract: left out")
    frame = frame[good].drop_duplicates()
    return frame.sort_values(list(frame.columns), kind="stable").reset_index(drop=True)


def _rows(spec: ModelSpec, log: PredictionLog, at: NDArray[np.int64], known: list[list[Any]]) -> pd.DataFrame:
    from ci.live.measure import coded_labels

    truth = coded_labels(spec, [found[-1] for found in known])
    good = ~np.isnan(truth)
    values, truth = log.values[at[good]], truth[good]
    columns = {name: _decoded(column, values[:, i]) for i, (name, column) in enumerate(spec.data.by_name().items())}
    target = truth.astype(np.int64) if spec.data.classes else truth
    return pd.DataFrame({**columns, spec.data.target: target})


def _decoded(column: Column, values: NDArray[np.float64]) -> Any:
    """Return logged values as data.py gives them: category names, whole numbers, or floats; missing stays missing."""
    if column.values:
        names = [*column.values, None]
        codes = np.where(np.isfinite(values) & (values >= 0), values, len(column.values)).astype(np.int64)
        return [names[code] for code in np.minimum(codes, len(column.values))]
    if column.type == "int" and np.isfinite(values).all():
        return values.astype(np.int64)
    return values


def _choices(
    spec: ModelSpec, log: PredictionLog, labels: Labels, at: NDArray[np.int64], known: list[list[Any]]
) -> pd.DataFrame:
    columns = spec.data.by_name()
    highest = columns["rating"].max
    rating = 5.0 if highest is None else highest
    rows: list[dict[str, Any]] = []
    for row, items in zip(at.tolist(), known, strict=True):
        when = labels.times[log.ids[log.request[row]], int(log.position[row])]
        rows += [
            {"user": int(log.users[row]), "item": int(item), "rating": rating, "timestamp": int(when)} for item in items
        ]
    return pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"])
