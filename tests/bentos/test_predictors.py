"""Loading is verified, nothing is unpickled, and the outputs are those of the trained model."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bentos.predictors import load
from bentos.schema import ArtifactError
from tests.bentos import artifacts


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.table_model(tmp_path_factory.mktemp("binary"))


def change(folder: Path, **keys: Any) -> None:
    path = folder / "serving.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_onnx_predicts_what_the_estimator_predicts(tmp_path: Path, task: str) -> None:
    predictor = load(artifacts.table_model(tmp_path, task))
    matrix, _ = artifacts.rows(50, seed=3)
    outputs, fitted = predictor.predict(matrix), artifacts.estimator(task)
    assert outputs.labels is not None and outputs.probabilities is not None
    assert outputs.labels.tolist() == fitted.predict(matrix).tolist()
    np.testing.assert_allclose(outputs.probabilities, fitted.predict_proba(matrix), atol=1e-5)


def test_regression_gives_one_value_a_row(tmp_path: Path) -> None:
    matrix, target = artifacts.rows(50, seed=3)
    outputs = load(artifacts.table_model(tmp_path, "regression")).predict(matrix)
    assert outputs.values is not None and outputs.values.shape == (50,) and outputs.labels is None
    np.testing.assert_allclose(outputs.values, target, rtol=1e-3, atol=1e-3)


def test_finite_sees_nan() -> None:
    from bentos.predictors import Outputs

    assert Outputs(values=np.array([1.0], np.float32)).finite()
    assert not Outputs(values=np.array([1.0, np.nan], np.float32)).finite()
    assert not Outputs(probabilities=np.array([[0.1, np.inf]], np.float32)).finite()


def test_one_flipped_byte_is_refused_before_loading(binary: Path, tmp_path: Path) -> None:
    content = bytearray((binary / "artifact.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "serving.json").write_bytes((binary / "serving.json").read_bytes())
    (tmp_path / "artifact.onnx").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"artifact\.onnx: sha256 is .*refused to load"):
        load(tmp_path)


def test_the_release_decides_and_not_the_file_beside_the_artifact(binary: Path) -> None:
    with pytest.raises(ArtifactError, match="the release says 0000000000000000"):
        load(binary, "0" * 64)
    right = json.loads((binary / "serving.json").read_text())["sha256"]
    assert load(binary, f"sha256:{right}").spec.sha256 == right


@pytest.mark.parametrize("missing", ["serving.json", "artifact.onnx"])
def test_a_missing_file_is_named(tmp_path: Path, binary: Path, missing: str) -> None:
    for name in {"serving.json", "artifact.onnx"} - {missing}:
        (tmp_path / name).write_bytes((binary / name).read_bytes())
    with pytest.raises(ArtifactError, match=f"{missing}: cannot be read: No such file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"task": "poetry"}, "task: 'poetry' is not one of"),
        ({"format": "pickle"}, "format: 'pickle' is not one of"),
        ({"format": "npz"}, "format: npz does not serve a binary model"),
        ({"file": "../artifact.onnx"}, "must be a name in the same folder"),
        ({"columns": []}, "columns: is empty"),
        ({"classes": []}, "needs at least two"),
        ({"columns": [{"type": "float"}]}, "name: is missing"),
    ],
)
def test_a_wrong_serving_json_is_named(tmp_path: Path, binary: Path, keys: dict[str, Any], said: str) -> None:
    for name in ("serving.json", "artifact.onnx"):
        (tmp_path / name).write_bytes((binary / name).read_bytes())
    change(tmp_path, **keys)
    with pytest.raises(ArtifactError, match=said):
        load(tmp_path)


def test_a_file_that_is_no_onnx_model_is_one_line(tmp_path: Path) -> None:
    folder = artifacts.write(tmp_path, b"not a model", model="tumor", task="binary", classes=["a", "b"])
    with pytest.raises(ArtifactError, match="not a usable onnx file") as raised:
        load(folder)
    assert "\n" not in str(raised.value)


def test_an_onnx_model_with_other_names_is_refused(tmp_path: Path) -> None:
    content = artifacts.onnx_bytes(artifacts.estimator("regression"), "regression")
    folder = artifacts.write(tmp_path, content, model="tumor", task="binary", classes=["a", "b"])
    with pytest.raises(ArtifactError, match=r"not \['rows'\] -> \['label', 'probabilities'\]"):
        load(folder)


def test_skops_loads_reviewed_types_only(tmp_path: Path) -> None:
    import skops.io
    from sklearn.preprocessing import FunctionTransformer

    fitted = artifacts.estimator("binary")
    spec = {"model": "tumor", "task": "binary", "format": "skops", "classes": ["a", "b"]}
    matrix, _ = artifacts.rows(20, seed=3)
    outputs = load(artifacts.write(tmp_path / "good", skops.io.dumps(fitted), **spec)).predict(matrix)
    assert outputs.labels is not None and outputs.labels.tolist() == fitted.predict(matrix).tolist()
    bad = artifacts.write(tmp_path / "bad", skops.io.dumps(FunctionTransformer(os.system)), **spec)
    with pytest.raises(ArtifactError, match="system, which is not on the reviewed list"):
        load(bad)


def test_recommend_leaves_out_what_was_rated(tmp_path: Path) -> None:
    predictor, arrays = load(artifacts.ranking_model(tmp_path)), artifacts.factors()
    items, scores, known = predictor.recommend(np.array([7, 9, 1234], np.int64), 3)
    assert known.tolist() == [True, True, False]
    expected = arrays["item_factors"] @ arrays["user_factors"][0] + arrays["item_bias"]
    expected[0] = -np.inf
    assert items[0].tolist() == arrays["item_ids"][np.argsort(-expected)[:3]].tolist()
    np.testing.assert_allclose(scores[0], np.sort(expected)[::-1][:3], rtol=1e-6)
    assert items[1].tolist() == [50]
    assert items[2].tolist() == [30, 40, 10], "an unknown user gets the popular items, ties in item order"
    assert predictor.title(50) == "Ü" and predictor.title(51) is None


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        ("item_bias", np.zeros(4, np.float32), "'item_bias' is float32 \\(4,\\), which does not fit"),
        ("user_factors", np.full((3, 2), np.nan, np.float32), "'user_factors' holds NaN"),
        ("seen_items", np.array([0, 1, 2, 0, 1, 2, 99], np.int32), "do not fit together"),
        ("popularity", None, "'popularity' is missing"),
        ("titles", np.array(["A"]), "one for each item"),
        ("titles", np.array([object()] * 5), "not a usable npz file"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path: Path, name: str, array: Any, said: str) -> None:
    arrays = artifacts.factors()
    arrays.pop(name)
    if array is not None:
        arrays[name] = array
    with pytest.raises(ArtifactError, match=said):
        load(artifacts.ranking_model(tmp_path, arrays))


def test_a_truncated_npz_is_one_line(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **artifacts.factors())
    spec = {"model": "movies", "task": "ranking", "format": "npz"}
    with pytest.raises(ArtifactError, match="not a usable npz file"):
        load(artifacts.write(tmp_path, buffer.getvalue()[:300], **spec))
