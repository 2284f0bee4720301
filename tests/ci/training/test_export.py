"""Exported artifacts: the same predictions as the fitted model, the same bytes each time, and loud refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pytest
from sklearn.ensemble import GradientBoostingClassifier, RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from bentos.predictors import load
from ci.errors import Mistake, Refusal
from ci.files import sha256_file
from ci.training import data, export
from models.spec import ModelSpec, parse
from tests.mlflow_server import ROOT

BINARY = parse((ROOT / "tests/fixtures/valid/model/binary.yaml").read_text(), "x", "tumor")
RANKING = parse((ROOT / "tests/fixtures/valid/model/ranking.yaml").read_text(), "x", "tumor")


def variant(task: str, artifact: str = "onnx") -> ModelSpec:
    classes = {"regression": None, "binary": ["a", "b"], "multiclass": ["a", "b", "c"]}[task]
    return BINARY.model_copy(
        update={
            "task": task,
            "data": BINARY.data.model_copy(update={"classes": classes}),
            "serving": BINARY.serving.model_copy(update={"artifact": artifact}),
        }
    )


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(1)
    radius = rng.uniform(0, 60, 300)
    site = rng.choice(["left", "right"], 300)
    return pd.DataFrame({"radius": radius, "site": site, "diagnosis": (radius + 9 * (site == "left") > 33).astype(int)})


def fitted(model: Any, spec: ModelSpec, frame: pd.DataFrame) -> Any:
    target = frame["diagnosis"].to_numpy()
    if spec.task == "multiclass":
        target = target + (frame["radius"] > 50).to_numpy()
    elif spec.task == "regression":
        target = frame["radius"].to_numpy() * 100.0
    return model.fit(data.encode(spec, frame).drop(columns="diagnosis").to_numpy(), target)


ESTIMATORS = {
    "binary": lambda: make_pipeline(StandardScaler(), LogisticRegression()),
    "multiclass": lambda: GradientBoostingClassifier(n_estimators=10, random_state=0),
    "regression": lambda: RandomForestRegressor(n_estimators=10, random_state=0),
}


@pytest.mark.parametrize("artifact", ["onnx", "skops"])
@pytest.mark.parametrize("task", ESTIMATORS)
def test_predicts_the_same_and_has_the_same_bytes(
    tmp_path: Path, frame: pd.DataFrame, task: str, artifact: str
) -> None:
    spec = variant(task, artifact)
    model = fitted(ESTIMATORS[task](), spec, frame)
    digest = export.export(spec, model, tmp_path / "a")
    export.check_parity(spec, model, tmp_path / "a", frame)
    again = export.export(spec, fitted(ESTIMATORS[task](), spec, frame), tmp_path / "b")
    assert digest == again == sha256_file(tmp_path / "a" / f"artifact.{artifact}")
    rows = data.matrix(spec, frame)
    said = load(tmp_path / "a").predict(rows)
    if task == "regression":
        assert said.values is not None and said.values.shape == (300,)
        assert said.values == pytest.approx(model.predict(rows), rel=1e-4)
    else:
        assert said.probabilities == pytest.approx(model.predict_proba(rows), abs=1e-4)
        assert said.labels is not None and said.labels.tolist() == model.predict(rows).tolist()


def test_the_graph_has_the_agreed_names_and_a_pinned_opset(tmp_path: Path, frame: pd.DataFrame) -> None:
    spec = variant("binary")
    export.export(spec, fitted(ESTIMATORS["binary"](), spec, frame), tmp_path)
    graph = onnx.load(tmp_path / "artifact.onnx")
    onnx.checker.check_model(graph)
    assert [part.name for part in graph.graph.input] == ["rows"]
    assert [part.name for part in graph.graph.output] == ["label", "probabilities"]
    assert all(part.version <= export.OPSET[part.domain] for part in graph.opset_import)
    assert not [node for node in graph.graph.node if node.op_type == "ZipMap"]


def test_serving_json_says_all_that_serving_needs(tmp_path: Path, frame: pd.DataFrame) -> None:
    digest = export.export(BINARY, fitted(ESTIMATORS["binary"](), BINARY, frame), tmp_path)
    assert json.loads((tmp_path / "serving.json").read_text()) == {
        "model": "tumor",
        "task": "binary",
        "format": "onnx",
        "file": "artifact.onnx",
        "sha256": digest,
        "columns": [
            {"name": "radius", "type": "float", "min": 0.0, "max": 60.0, "values": None, "max_missing": 0.0},
            {
                "name": "site",
                "type": "category",
                "min": None,
                "max": None,
                "values": ["left", "right"],
                "max_missing": 0.0,
            },
        ],
        "classes": ["benign", "malignant"],
        "max_rows": 1000,
        "max_body_kb": 1024,
        "max_concurrency": 32,
        "timeout_s": 5.0,
    }


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_refuses_an_artifact_that_predicts_otherwise(tmp_path: Path, frame: pd.DataFrame, task: str) -> None:
    spec = variant(task)
    model = fitted(
        make_pipeline(StandardScaler(), LogisticRegression() if task == "binary" else LinearRegression()), spec, frame
    )
    export.export(spec, model, tmp_path)
    model[-1].coef_ = model[-1].coef_ * 1.01
    with pytest.raises(
        Refusal, match=r"predicts other (probabilities|values) than the trained model: [0-9]+ of 300 held-out rows"
    ):
        export.check_parity(spec, model, tmp_path, frame)


def test_refuses_predictions_that_are_not_numbers(tmp_path: Path, frame: pd.DataFrame) -> None:
    model = fitted(ESTIMATORS["binary"](), BINARY, frame)
    model[-1].coef_ = model[-1].coef_ * np.nan
    export.export(BINARY, model, tmp_path)

    class Numb:  # scikit-learn itself would raise
        def predict_proba(self, rows: Any) -> Any:
            return np.full((len(rows), 2), np.nan)

    with pytest.raises(Refusal, match="300 of 300 held-out rows"):
        export.check_parity(BINARY, Numb(), tmp_path, frame)


def test_an_estimator_that_cannot_be_exported(tmp_path: Path, frame: pd.DataFrame) -> None:
    model = fitted(make_pipeline(FunctionTransformer(np.sin), LogisticRegression()), BINARY, frame)
    with pytest.raises(Mistake, match=r"^tumor: Pipeline cannot be exported to ONNX: "):
        export.export(BINARY, model, tmp_path)


def test_what_train_py_may_not_return(tmp_path: Path, frame: pd.DataFrame) -> None:
    for model, line in [
        (None, "returned NoneType, not a scikit-learn estimator"),
        (fitted(RidgeClassifier(), BINARY, frame), "returned RidgeClassifier, which has no predict_proba"),
        (
            LogisticRegression().fit([[0.0, 1], [1, 0]], [3, 4]),
            r"the estimator's classes are \[.*3.*, .*4.*\], not the indices \[0, 1\]",
        ),
    ]:
        with pytest.raises(Mistake, match=f"^models/tumor/train.py: fit: {line}$"):
            export.export(BINARY, model, tmp_path)
    with pytest.raises(Mistake) as refused:
        export.export(RANKING, {"item_ids": np.array([1.5]), "titles": np.array([object()])}, tmp_path)
    assert refused.value.lines[:2] == [
        "models/tumor/train.py: fit: array 'user_ids' is missing",
        "models/tumor/train.py: fit: array 'user_factors' is missing",
    ]
    assert refused.value.lines[-2:] == [
        "models/tumor/train.py: fit: array 'item_ids' is float64, not int64",
        "models/tumor/train.py: fit: array 'titles' holds Python objects",
    ]


def test_skops_refuses_types_that_nobody_reviewed(tmp_path: Path, frame: pd.DataFrame) -> None:
    spec = variant("binary", "skops")
    model = fitted(make_pipeline(FunctionTransformer(sneaky), LogisticRegression()), spec, frame)
    with pytest.raises(Refusal, match=r"the skops file holds the type '.*sneaky', which nobody has reviewed"):
        export.export(spec, model, tmp_path)


def sneaky(rows: Any) -> Any:
    return rows


def test_ranking_arrays(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    arrays: dict[str, Any] = {
        "item_ids": np.arange(10, 40),
        "user_ids": np.arange(5),
        "user_factors": rng.normal(size=(5, 4)).astype(np.float32),
        "item_factors": rng.normal(size=(30, 4)).astype(np.float32),
        "item_bias": rng.normal(size=30).astype(np.float32),
        "popularity": rng.random(30).astype(np.float32),
        "seen_indptr": np.array([0, 1, 1, 2, 2, 2]),
        "seen_items": np.array([3, 4], dtype=np.int32),
    }
    holdout = pd.DataFrame({"user": [0, 1, 77], "item": [10, 11, 12], "rating": 5.0, "timestamp": 1})
    digest = export.export(RANKING, arrays, tmp_path / "a")
    assert digest == export.export(RANKING, dict(reversed(arrays.items())), tmp_path / "b")
    export.check_parity(RANKING, arrays, tmp_path / "a", holdout)
    with np.load(tmp_path / "a" / "artifact.npz", allow_pickle=False) as archive:
        assert all((archive[name] == arrays[name]).all() for name in arrays)
    with pytest.raises(Refusal, match="predicts other scores"):
        export.check_parity(RANKING, {**arrays, "item_bias": arrays["item_bias"] + 1}, tmp_path / "a", holdout)
