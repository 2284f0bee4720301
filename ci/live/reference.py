"""The training reference of a released version: what live data is compared with.

Read from the run's artifacts once and kept under `.wharf/cache/reference/<run>/`, so monitoring goes on while MLflow
is down. Plain numpy and pyarrow: neither mlflow nor pandas is imported for an http(s) registry.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ci.errors import Mistake
from ci.live.prediction_log import Schema
from ci.workspace import Workspace, shown_uri
from models.spec import ModelSpec


@dataclass(frozen=True)
class TableReference:
    """Training rows (a sample) and what the model said of them."""

    values: NDArray[np.float64]  # [n, d] schema order, categories as codes
    predictions: NDArray[np.float64]  # [n] class index or value; [0] when the run stored none
    scores: NDArray[np.float64]  # [n] or [0]


@dataclass(frozen=True)
class RankingReference:
    """What a ranking model learned of users and items, and what it recommends to the users it knows."""

    activity: dict[int, int]  # user id -> items rated in training
    popularity: dict[int, float]  # item id -> popularity
    recommended: NDArray[np.int64]  # [r] item ids recommended to a sample of the users, flattened


def schema_of(spec: ModelSpec) -> Schema | None:
    """Return how to read the logged rows of a model; None for a ranking model."""
    if spec.task == "ranking":
        return None
    columns = spec.data.by_name()
    return Schema(tuple(columns), {name: column.values for name, column in columns.items() if column.values})


def fetch(workspace: Workspace, run_id: str, path: str) -> Path:
    """Return the file `path` of a run's artifacts, from the cache or MLflow.

    Raises Mistake when the run or the file does not exist, Unavailable when MLflow is needed and does not answer.
    """
    target = workspace.state / "cache" / "reference" / run_id / path
    if target.is_file():
        return target
    from ci.mlflow_api.store import connect

    store = connect(workspace)
    run = store.run(run_id)
    if run is None:
        raise Mistake(
            f"MLflow at {shown_uri(store.uri)} has no run {run_id}",
            tip="does MLFLOW_TRACKING_URI name the right server?",
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        store.download(run, path, Path(name))
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return target


def load_table(workspace: Workspace, spec: ModelSpec, run_id: str) -> TableReference:
    """Read `reference.parquet` of the run; raises Mistake when a column of the contract is not in it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = fetch(workspace, run_id, "reference.parquet")
    try:
        table: Any = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        path.unlink(missing_ok=True)  # a damaged copy must not stay in the cache
        raise Mistake(f"{spec.name}: reference.parquet of run {run_id} is not readable: {error}") from None
    columns = spec.data.by_name()
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise Mistake(
            f"{spec.name}: reference.parquet of run {run_id} has no column '{missing[0]}'",
            tip="the contract changed after that version was trained; train and release a new version",
        )
    values = [_column(table.column(name), column.values) for name, column in columns.items()]
    classes = spec.data.classes if spec.task != "regression" else None
    return TableReference(
        values=np.column_stack(values),
        predictions=_optional(table, "prediction", classes),
        scores=_optional(table, "score", None),
    )


def _optional(table: Any, name: str, values: list[str] | None) -> NDArray[np.float64]:
    return _column(table.column(name), values) if name in table.column_names else np.empty(0)


def _column(column: Any, values: list[str] | None) -> NDArray[np.float64]:
    """Return a parquet column as float64; text becomes the index in `values`, -1 for an unknown one."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        codes = {value: float(code) for code, value in enumerate(values or [])}
        return np.array([float("nan") if item is None else codes.get(item, -1.0) for item in column.to_pylist()])
    return np.asarray(column.to_numpy(), dtype=np.float64)


def load_ranking(workspace: Workspace, spec: ModelSpec, run_id: str, k: int, users: int = 1000) -> RankingReference:
    """Load the arrays of the run and recommend `k` items to at most `users` of its users, evenly spread."""
    from bentos.predictors import ArtifactError, load

    folder = fetch(workspace, run_id, "model/serving.json").parent
    path = fetch(workspace, run_id, "model/artifact.npz")
    try:
        predictor = load(folder)
    except ArtifactError as error:
        path.unlink(missing_ok=True)
        raise Mistake(f"{spec.name}: the artifact of run {run_id} cannot be read: {error}") from None
    with np.load(path, allow_pickle=False) as arrays:
        user_ids, item_ids = arrays["user_ids"], arrays["item_ids"]
        activity, popularity = np.diff(arrays["seen_indptr"]), arrays["popularity"]
    picked = user_ids[np.unique(np.linspace(0, len(user_ids) - 1, min(users, len(user_ids))).astype(np.int64))]
    items, _, _ = predictor.recommend(picked.astype(np.int64), k)
    return RankingReference(
        activity=dict(zip(user_ids.tolist(), activity.tolist(), strict=True)),
        popularity=dict(zip(item_ids.tolist(), popularity.tolist(), strict=True)),
        recommended=np.concatenate(items) if items else np.empty(0, dtype=np.int64),
    )
