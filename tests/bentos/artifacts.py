"""Small artifacts for the serving tests: trained here, in the form that `wharf train` leaves them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 6  # columns of the table models


def columns(**changes: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the columns a, b, … of a table model; `changes` overrides keys by column name."""
    made = [{"name": "abcdef"[i], "type": "float", "min": -3, "max": 3, "values": None} for i in range(SIZE)]
    return [{**column, **changes.get(column["name"], {})} for column in made]


def write(folder: Path, content: bytes, **spec: Any) -> Path:
    """Write the artifact `content` and its serving.json to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = {"format": "onnx", "columns": columns(), "classes": [], **spec}
    spec.setdefault("file", f"artifact.{spec['format']}")
    spec["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / spec["file"]).write_bytes(content)
    (folder / "serving.json").write_text(json.dumps(spec))
    return folder


def rows(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 rows [n, SIZE] and a number that depends on them."""
    matrix = np.random.default_rng(seed).normal(size=(n, SIZE)).astype(np.float32)
    return matrix, matrix @ np.arange(1, SIZE + 1, dtype=np.float32)


def estimator(task: str) -> Any:
    """Train a small scikit-learn pipeline for a table task."""
    from sklearn.linear_model import LinearRegression, LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    matrix, target = rows()
    if task == "regression":
        return make_pipeline(StandardScaler(), LinearRegression()).fit(matrix, target)
    bounds = [0] if task == "binary" else [-5, 5]
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(matrix, np.digitize(target, bounds))


def onnx_bytes(fitted: Any, task: str, size: int = SIZE) -> bytes:
    """Return `fitted` as ONNX with the names of the contract."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    model = to_onnx(
        fitted,
        initial_types=[("rows", FloatTensorType([None, size]))],
        options={"zipmap": False} if task != "regression" else None,
        target_opset=18,
    )
    wanted = ["value"] if task == "regression" else ["label", "probabilities"]
    renames = {old.name: new for old, new in zip(model.graph.output, wanted, strict=True)}
    for node in model.graph.node:
        node.output[:] = [renames.get(name, name) for name in node.output]
        node.input[:] = [renames.get(name, name) for name in node.input]
    for output in model.graph.output:
        output.name = renames[output.name]
    return model.SerializeToString()


CLASSES = {"binary": ["benign", "malignant"], "multiclass": ["low", "middle", "high"], "regression": []}


def table_model(folder: Path, task: str = "binary", name: str = "tumor", **spec: Any) -> Path:
    """Make the model folder of an ONNX model for `task`."""
    content = onnx_bytes(estimator(task), task)
    return write(folder, content, model=name, task=task, **{"classes": CLASSES[task], **spec})


def factors() -> dict[str, np.ndarray]:
    """Return the arrays of a recommender with 3 users (7, 8, 9) and 5 items (10..50); user 9 has rated all but one."""
    rng = np.random.default_rng(1)
    return {
        "item_ids": np.array([10, 20, 30, 40, 50], np.int64),
        "user_ids": np.array([7, 8, 9], np.int64),
        "user_factors": rng.normal(size=(3, 2)).astype(np.float32),
        "item_factors": rng.normal(size=(5, 2)).astype(np.float32),
        "item_bias": np.array([0.1, 0.2, 0.3, 0.4, 0.5], np.float32),
        "popularity": np.array([5, 1, 9, 9, 2], np.float32),
        "seen_indptr": np.array([0, 1, 3, 7], np.int64),
        "seen_items": np.array([0, 1, 2, 0, 1, 2, 3], np.int32),
        "titles": np.array(["A", "B", "C", "D", "Ü"]),
    }


def ranking_model(folder: Path, arrays: dict[str, np.ndarray] | None = None, **spec: Any) -> Path:
    """Make the model folder of a recommender."""
    import io

    buffer = io.BytesIO()
    np.savez(buffer, **(factors() if arrays is None else arrays))
    names = ["user", "item", "rating", "timestamp"]
    spec = {"columns": [{"name": name, "type": "int"} for name in names], **spec}
    return write(folder, buffer.getvalue(), model="movies", task="ranking", format="npz", **spec)
