"""The built-in models, fitted on their real data, reach what their contracts ask, with the artifact that serves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bentos.predictors import load as load_predictor
from ci.gating.scoring import predicted
from ci.training import data, export
from ci.training.model_code import call
from ci.workspace import Workspace, load_spec
from models.metrics import compute
from tests.mlflow_server import ROOT


@pytest.mark.parametrize("name", ["tumor", pytest.param("digits", marks=pytest.mark.slow)])
def test_reaches_its_thresholds(tmp_path: Path, name: str) -> None:
    here = Workspace(ROOT)
    spec = load_spec(here, name)
    frame = data.load(here, spec, data.resolve(here, spec))
    train, holdout = data.split(spec, frame)
    model = call(here, name, "train", "fit", data.encode(spec, train), spec.training.params, spec.training.seed)
    export.export(spec, model, tmp_path)
    export.check_parity(spec, model, tmp_path, holdout)
    held = predicted(load_predictor(tmp_path), tmp_path, holdout, spec)
    for metric, bound in spec.gate.metrics.items():
        value = compute(spec.task, metric, held.y_true, held.outputs)
        assert bound.min is None or value >= bound.min, (metric, value)
        assert bound.max is None or value <= bound.max, (metric, value)
    assert (tmp_path / f"artifact.{spec.serving.artifact}").stat().st_size < spec.gate.artifact_mb * 2**20


def test_malignant_is_the_positive_class() -> None:
    frame = call(Workspace(ROOT), "tumor", "data", "load", None)
    assert frame["diagnosis"].value_counts().to_dict() == {0: 357, 1: 212}  # the data set's own description
    assert (
        frame.loc[frame["diagnosis"] == 1, "mean_area"].mean() > frame.loc[frame["diagnosis"] == 0, "mean_area"].mean()
    )


def test_data_py_reads_a_file_in_the_same_form(tmp_path: Path) -> None:
    for name in ("tumor", "digits"):
        frame = call(Workspace(ROOT), name, "data", "load", None)
        path = tmp_path / f"{name}.csv"
        frame.to_csv(path, index=False)
        assert np.allclose(call(Workspace(ROOT), name, "data", "load", path).to_numpy(), frame.to_numpy())


def test_a_file_with_class_names(tmp_path: Path) -> None:
    here = Workspace(ROOT)
    spec = load_spec(here, "tumor")
    frame = data.load(here, spec, data.resolve(here, spec))
    path = tmp_path / "named.csv"
    frame.assign(diagnosis=frame["diagnosis"].map({0: "benign", 1: "malignant"})).to_csv(path, index=False)
    read = data.load(here, spec, data.resolve(here, spec, path))
    assert read["diagnosis"].tolist() == frame["diagnosis"].tolist()
    assert read["diagnosis"].dtype.kind == "i"
    assert data.digest(read) == data.digest(frame)


def test_moved_digits_keep_their_ink() -> None:
    from models.digits.train import _moved

    image = np.zeros((1, 64))
    image[0, 8 * 3 + 4] = 16  # row 3, column 4
    places = [divmod(int(copy.argmax()), 8) for copy in _moved(image)]
    assert places == [(3, 4), (4, 4), (2, 4), (3, 5), (3, 3)]
