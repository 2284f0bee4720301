"""Turn a fitted model into the artifact that serves, and prove that both predict the same.

The same model gives the same bytes, so a version that learned nothing new has the sha256 of the one before.
"""

from __future__ import annotations

import io
import json
import re
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ci.errors import Mistake, Refusal
from ci.files import sha256_bytes, write_atomic
from ci.training import data

if TYPE_CHECKING:
    from models.spec import ModelSpec

# Pinned, so that a newer converter does not change what is served. onnx 1.17 to ONNX Runtime 1.31 all know these.
OPSET = {"": 18, "ai.onnx.ml": 3}
# The largest difference between the fitted model and its artifact: float32 against float64 arithmetic.
TOLERANCE = 1e-4

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip file can hold
_RANKING_ARRAYS = {
    "item_ids": np.int64,
    "user_ids": np.int64,
    "user_factors": np.float32,
    "item_factors": np.float32,
    "item_bias": np.float32,
    "popularity": np.float32,
    "seen_indptr": np.int64,
    "seen_items": np.int32,
}


def export(spec: ModelSpec, model: Any, folder: Path) -> str:
    """Write `artifact.<format>` and `serving.json` of the fitted `model` to `folder`; return the artifact's sha256.

    `model`: a fitted scikit-learn estimator for onnx and skops, a dict of arrays for npz. Raises Mistake when
    train.py returned something else.
    """
    content = {"onnx": _onnx, "skops": _skops, "npz": _npz}[spec.serving.artifact](spec, model)
    name, digest = f"artifact.{spec.serving.artifact}", sha256_bytes(content)
    write_atomic(folder / name, content)
    serving = {
        "model": spec.name,
        "task": spec.task,
        "format": spec.serving.artifact,
        "file": name,
        "sha256": digest,
        "columns": [
            {"name": column_name, **column.model_dump(include={"type", "min", "max", "values", "max_missing"})}
            for column_name, column in spec.data.by_name().items()
        ],
        "classes": spec.data.classes,
        **spec.serving.model_dump(include={"max_rows", "max_body_kb", "max_concurrency", "timeout_s"}),
    }
    write_atomic(folder / "serving.json", json.dumps(serving, indent=1) + "\n")
    return digest


def check_parity(spec: ModelSpec, model: Any, folder: Path, holdout: pd.DataFrame) -> None:
    """Compare the artifact in `folder`, as serving loads it, with the fitted `model` on the held-out rows.

    Classifiers: equal labels, probabilities within 1e-4. Regression: values within 1e-4, relative above 1. Ranking:
    scores of the recommended items within 1e-4 (relative above 1) of those computed from the fitted arrays. Raises
    Refusal with what differs.
    """
    from bentos.predictors import load

    predictor = load(folder)
    if spec.task == "ranking":
        users = np.unique(holdout["user"].to_numpy(dtype=np.int64))
        items, scores, known = predictor.recommend(users, 10)
        expected, got = (
            _ranking_scores(model, users[known], [items[i] for i in np.flatnonzero(known)]),
            [scores[i] for i in np.flatnonzero(known)],
        )
        _compare(spec, np.concatenate(expected or [np.empty(0)]), np.concatenate(got or [np.empty(0)]), "scores")
        return
    rows = data.matrix(spec, holdout)
    said = predictor.predict(rows)
    if spec.task == "regression":
        _compare(spec, np.asarray(model.predict(rows.astype(np.float64))).reshape(-1), said.values, "values")
        return
    expected_table = model.predict_proba(rows.astype(np.float64))
    _compare(spec, expected_table, said.probabilities, "probabilities")
    differ = int((np.asarray(model.predict(rows.astype(np.float64))) != said.labels).sum())
    if differ:
        raise Refusal(f"{spec.name}: the exported artifact gives {differ} of {len(rows)} held-out rows another label")


def _compare(spec: ModelSpec, expected: Any, found: Any, what: str) -> None:
    expected, found = np.asarray(expected, dtype=np.float64), np.asarray(found, dtype=np.float64)
    if expected.shape != found.shape:
        raise Refusal(f"{spec.name}: the exported artifact gives {what} of shape {found.shape}, not {expected.shape}")
    gap = np.abs(expected - found) / np.maximum(1.0, np.abs(expected))
    # Not `gap > TOLERANCE`: a NaN on either side must refuse too.
    wrong = ~(gap <= TOLERANCE)
    if wrong.any():
        worst = np.nanmax(gap) if np.isfinite(gap).any() else float("nan")
        raise Refusal(
            f"{spec.name}: the exported artifact predicts other {what} than the trained model: "
            f"{int(wrong.reshape(len(wrong), -1).any(axis=1).sum())} of {len(found)} held-out rows, "
            f"by up to {worst:.2g} (allowed {TOLERANCE:g})",
            tip="scale the inputs, or choose an estimator that keeps its precision in float32",
        )


def _ranking_scores(
    arrays: dict[str, NDArray[Any]], users: NDArray[np.int64], items: list[NDArray[np.int64]]
) -> list[NDArray[np.float64]]:
    user_row = {int(user): row for row, user in enumerate(arrays["user_ids"])}
    item_row = {int(item): row for row, item in enumerate(arrays["item_ids"])}
    users64, items64 = arrays["user_factors"].astype(np.float64), arrays["item_factors"].astype(np.float64)
    scores: list[NDArray[np.float64]] = []
    for user, offered in zip(users.tolist(), items, strict=True):
        rows = [item_row[int(item)] for item in offered]
        scores.append(items64[rows] @ users64[user_row[user]] + arrays["item_bias"][rows])
    return scores


def _onnx(spec: ModelSpec, model: Any) -> bytes:
    """Convert a scikit-learn estimator: input `rows` float32 [n, d], outputs `label` and `probabilities` or `value`."""
    _estimator(spec, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the converter are not the user's
        from skl2onnx import convert_sklearn
        from skl2onnx.common.data_types import FloatTensorType

        try:
            options = {"zipmap": False} if spec.task != "regression" else None
            graph: Any = convert_sklearn(
                model,
                name=spec.name,
                initial_types=[("rows", FloatTensorType([None, len(spec.data.names())]))],
                options={id(model): options} if options else None,
                target_opset=OPSET,
            )
        except Exception as error:
            reason = str(error).strip().splitlines()
            raise Mistake(
                f"{spec.name}: {type(model).__name__} cannot be exported to ONNX: {reason[0] if reason else error!r}",
                tip=f"use another estimator, or `serving.artifact: skops` in models/{spec.name}/model.yaml",
            ) from error
    if spec.task == "regression":
        _flatten_value(graph)
    else:
        _rename(graph, [output.name for output in graph.graph.output], ["label", "probabilities"])
    return graph.SerializeToString(deterministic=True)


def _rename(graph: Any, old: list[str], new: list[str]) -> None:
    names = dict(zip(old, new, strict=True))
    for node in graph.graph.node:
        for side in (node.input, node.output):
            for i, name in enumerate(side):
                side[i] = names.get(name, name)
    for output in graph.graph.output:
        output.name = names[output.name]


def _flatten_value(graph: Any) -> None:
    """Make the regression output [n, 1] a `value` [n]."""
    from onnx import TensorProto, helper, numpy_helper

    _rename(graph, [graph.graph.output[0].name], ["value_2d"])
    graph.graph.initializer.append(numpy_helper.from_array(np.array([-1], dtype=np.int64), "value_shape"))
    graph.graph.node.append(helper.make_node("Reshape", ["value_2d", "value_shape"], ["value"], name="flatten_value"))
    del graph.graph.output[:]
    graph.graph.output.append(helper.make_tensor_value_info("value", TensorProto.FLOAT, [None]))


def _skops(spec: ModelSpec, model: Any) -> bytes:
    """Save with skops; every type in it must be trusted by skops or reviewed (`bentos.predictors`)."""
    _estimator(spec, model)
    import skops.io

    from bentos.predictors import TRUSTED_SKOPS_TYPES

    content = _without_chance(skops.io.dumps(model))
    unknown = sorted(set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED_SKOPS_TYPES))
    if unknown:
        raise Refusal(
            [f"{spec.name}: the skops file holds the type '{name}', which nobody has reviewed" for name in unknown]
        )
    return content


def _without_chance(content: bytes) -> bytes:
    """Return a skops archive without what differs between two saves: memory addresses and the time.

    skops names objects and array files by `id(...)`; they are numbered in the order of their appearance instead.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    schema = members.pop("schema.json").decode()
    seen: dict[str, str] = {}

    def number(found: re.Match[str]) -> str:
        return found["before"] + seen.setdefault(found["id"], str(len(seen) + 1)) + found["after"]

    schema = re.sub(r'(?P<before>"__id__": )(?P<id>\d+)(?P<after>)', number, schema)
    schema = re.sub(r'(?P<before>"file": ")(?P<id>\d+)(?P<after>\.\w+")', number, schema)
    renamed = {
        re.sub(r"^\d+", lambda found: seen.get(found[0], found[0]), name): member for name, member in members.items()
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, member in [*sorted(renamed.items()), ("schema.json", schema.encode())]:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), member)
    return buffer.getvalue()


def _estimator(spec: ModelSpec, model: Any) -> None:
    where = f"models/{spec.name}/train.py: {spec.training.entry.partition(':')[2]}"
    if not hasattr(model, "predict"):
        raise Mistake(f"{where}: returned {type(model).__name__}, not a scikit-learn estimator")
    if spec.task == "regression":
        return
    if not hasattr(model, "predict_proba"):
        raise Mistake(f"{where}: returned {type(model).__name__}, which has no predict_proba")
    expected = list(range(len(spec.data.classes or [])))
    if [int(label) for label in model.classes_] != expected:
        raise Mistake(f"{where}: the estimator's classes are {list(model.classes_)}, not the indices {expected}")


def _npz(spec: ModelSpec, model: Any) -> bytes:
    """Save plain arrays, in the order of their names, uncompressed; nothing in it can be code."""
    where = f"models/{spec.name}/train.py: {spec.training.entry.partition(':')[2]}"
    if not isinstance(model, dict):
        raise Mistake(f"{where}: returned {type(model).__name__}, not a dict of arrays")
    arrays: dict[str, NDArray[Any]] = model
    faults = [f"{where}: array '{name}' is missing" for name in _RANKING_ARRAYS if name not in arrays]
    for name, array in arrays.items():
        wanted = np.dtype(_RANKING_ARRAYS[name]) if name in _RANKING_ARRAYS else None
        if wanted is not None and array.dtype != wanted:
            faults.append(f"{where}: array '{name}' is {array.dtype}, not {wanted}")
        elif array.dtype.hasobject:
            faults.append(f"{where}: array '{name}' holds Python objects")
    if faults:
        raise Mistake(faults)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), part.getvalue())
    return buffer.getvalue()
