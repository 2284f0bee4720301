"""Training against real tracking databases and a real server: what is recorded, reused, and finished after a crash."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from mlflow.entities import Run
from mlflow.tracking import MlflowClient

from ci import cli
from ci.errors import Mistake, Unavailable
from ci.files import sha256_file
from ci.models import PIPELINE
from ci.shell import git
from ci.train import Plan, _code, parse_overrides, train
from ci.training import tracking
from ci.workspace import Workspace, load_spec
from tests.mlflow_server import ROOT, free_port
from tests.movielens import write_ratings

slow = pytest.mark.slow


def runs(uri: str, model: str = "tumor") -> list[Run]:
    return tracking.find(MlflowClient(uri), model, "")


def commit(workspace: Workspace, message: str = "A change") -> str:
    git(workspace.root, "add", ".")
    git(workspace.root, "commit", "--quiet", f"--message={message}")
    return git(workspace.root, "rev-parse", "HEAD")


@slow
def test_records_everything_and_is_reused(workspace: Workspace, mlflow_db: str, tmp_path: Path) -> None:
    run = train(workspace, "tumor")
    assert not run.reused
    (recorded,) = runs(mlflow_db)
    assert recorded.info.run_id == run.run_id
    assert recorded.info.status == "FINISHED"
    tags, metrics = recorded.data.tags, recorded.data.metrics
    assert tags["wharf.state"] == "complete"
    assert tags["wharf.model"] == "tumor"
    assert tags["wharf.commit"] == git(workspace.root, "rev-parse", "HEAD")
    assert tags["wharf.dirty"] == "false"
    assert tags["wharf.wandb"] == "off"
    assert tags["wharf.lock_sha256"] == sha256_file(workspace.root / "uv.lock")
    for name in ("data_sha256", "fingerprint", "artifact_sha256", "source_sha256"):
        assert len(tags[f"wharf.{name}"]) == 64
    assert recorded.data.params == {"C": "0.3", "max_iter": "2000", "seed": "7"}
    assert metrics == run.metrics
    assert metrics["holdout.roc_auc"] > 0.97
    assert metrics["train.rows"] + metrics["holdout.rows"] == 569

    (dataset,) = recorded.inputs.dataset_inputs
    assert dataset.dataset.digest == tags["wharf.data_sha256"][:36]
    assert json.loads(dataset.dataset.schema)["mlflow_colspec"][0]["name"] == "mean_radius"

    (tmp_path / "files").mkdir()
    files = Path(MlflowClient(mlflow_db).download_artifacts(run.run_id, "", str(tmp_path / "files")))
    assert sorted(path.relative_to(files).as_posix() for path in files.rglob("*.*")) == [
        "holdout.parquet",
        "model/artifact.onnx",
        "model/serving.json",
        "plots/data.png",
        "plots/roc_calibration.png",
        "reference.parquet",
    ]
    assert sha256_file(files / "model/artifact.onnx") == tags["wharf.artifact_sha256"]
    spec = load_spec(workspace, "tumor")
    held, reference = pd.read_parquet(files / "holdout.parquet"), pd.read_parquet(files / "reference.parquet")
    assert list(held) == [*spec.data.names(), "diagnosis"]
    assert list(reference) == [*spec.data.names(), "diagnosis", "prediction", "score"]
    assert len(held) == metrics["holdout.rows"] and len(reference) == metrics["train.rows"]
    assert float((reference["prediction"] == reference["diagnosis"]).mean()) == metrics["train.accuracy"]
    assert not (workspace.state / "runs").is_dir() or not list((workspace.state / "runs").glob("*/"))

    again = train(workspace, "tumor")
    assert again.reused and again.run_id == run.run_id and again.metrics == run.metrics
    forced = train(workspace, "tumor", force=True)
    assert not forced.reused and forced.run_id != run.run_id
    assert forced.metrics == run.metrics  # same commit, data and seed
    hashes = {other.data.tags["wharf.artifact_sha256"] for other in runs(mlflow_db)}
    assert len(runs(mlflow_db)) == 2 and len(hashes) == 1


@slow
def test_what_makes_another_run(workspace: Workspace, mlflow_db: str) -> None:
    first = train(workspace, "tumor")
    other = train(workspace, "tumor", overrides={"C": 0.01})
    assert other.run_id != first.run_id and other.metrics != first.metrics
    spec = workspace.models / "tumor" / "model.yaml"
    spec.write_text(spec.read_text().replace("seed: 7", "seed: 8"))
    dirty = train(workspace, "tumor")
    assert not dirty.reused
    assert runs(mlflow_db)[0].data.tags["wharf.dirty"] == "true"
    assert train(workspace, "tumor").run_id == dirty.run_id
    head = commit(workspace)
    clean = train(workspace, "tumor")  # the commit of the dirty run does not hold its code
    assert not clean.reused and clean.metrics == dirty.metrics
    newest = runs(mlflow_db)[0]
    assert newest.data.tags["wharf.commit"] == head and newest.data.tags["wharf.dirty"] == "false"


def test_the_code_that_decides_a_run_is_in_its_fingerprint(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ci.training import data

    spec = load_spec(workspace, "tumor")
    job = Plan(workspace, spec, data.resolve(workspace, spec), None, {}, _code(workspace, "tumor"))
    here = job.fingerprint()
    for path in PIPELINE:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    monkeypatch.setattr("ci.train._CODE", tmp_path)
    assert job.fingerprint() == here
    found = {here}
    for path in PIPELINE:
        with (tmp_path / path).open("a") as file:
            file.write("# changed\n")
        found.add(job.fingerprint())
    assert len(found) == len(PIPELINE) + 1


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("models/tumor/notes.txt", True),
        ("models/tumor/train.py", True),
        ("models/metrics.py", True),
        ("models/helper.py", True),
        ("ci/training/data.py", True),
        ("uv.lock", True),
        ("notes.txt", False),
        ("models/digits/train.py", False),
        ("gitops/releases/dev/tumor.yaml", False),
    ],
)
def test_what_makes_a_run_dirty(workspace: Workspace, path: str, dirty: bool) -> None:
    assert not _code(workspace, "tumor").dirty
    file = workspace.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        stream.write("# changed\n")
    assert _code(workspace, "tumor").dirty is dirty
    commit(workspace)
    assert not _code(workspace, "tumor").dirty


@slow
def test_newer_rows_are_trained_on_and_held_rows_stay_held(workspace: Workspace, mlflow_db: str) -> None:
    from ci.training import data

    first = train(workspace, "tumor")
    spec = load_spec(workspace, "tumor")
    frame = data.load(workspace, spec, data.resolve(workspace, spec))
    moved = frame.head(100) * 1.01
    newer = moved.assign(diagnosis=["benign" if value < 0.5 else "malignant" for value in frame["diagnosis"].head(100)])
    run = train(workspace, "tumor", newer=newer)
    assert run.metrics["train.rows"] + run.metrics["holdout.rows"] == 669
    assert run.metrics["holdout.rows"] >= first.metrics["holdout.rows"]
    assert train(workspace, "tumor", newer=newer).run_id == run.run_id


@slow
def test_movies_over_http_with_a_given_file(
    workspace: Workspace,
    mlflow_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.chdir(workspace.root)
    path = write_ratings(tmp_path / "ml-100k.zip")
    words = ["train", "movies", "--data", str(path), "--set", "rank=16", "--json"]
    assert cli.main(words) == 0
    said = capsys.readouterr()
    run = json.loads(said.out)
    assert run["model"] == "movies" and run["metrics"]["holdout.ndcg_lift"] > 1.3
    assert "W&B: off (set WANDB_API_KEY, or WANDB_MODE=offline)" in said.err
    recorded = MlflowClient(mlflow_uri).get_run(run["run"])
    assert recorded.data.tags["wharf.source_sha256"] == sha256_file(path)
    assert recorded.data.params["rank"] == "16"
    names = [file.path for file in MlflowClient(mlflow_uri).list_artifacts(run["run"], "plots")]
    assert sorted(names) == ["plots/data.png", "plots/ranking.png"]
    reference = Path(MlflowClient(mlflow_uri).download_artifacts(run["run"], "reference.parquet", str(tmp_path)))
    assert list(pd.read_parquet(reference)) == ["user", "item", "rating", "timestamp", "prediction"]
    assert cli.main(words) == 0
    assert json.loads(capsys.readouterr().out) == {**run, "reused": True}


@slow
def test_mlflow_down_loses_nothing(workspace: Workspace, mlflow_db: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", dead)
    with pytest.raises(Unavailable) as refused:
        train(workspace, "tumor")
    (kept,) = (workspace.state / "runs").glob("*/")
    assert refused.value.lines == [
        f"MLflow at {dead} is not reachable (ConnectionError); the trained run is kept in {kept}"
    ]
    assert "run the same command again" in refused.value.tip
    artifact = sha256_file(kept / "artifacts" / "model" / "artifact.onnx")

    # Still down: said at once, and nothing is trained again.
    monkeypatch.setattr("ci.train._fit", lambda *_: pytest.fail("trained again"))
    begun = time.monotonic()
    with pytest.raises(Unavailable):
        train(workspace, "tumor")
    assert time.monotonic() - begun < 10

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_db)
    run = train(workspace, "tumor")
    (recorded,) = runs(mlflow_db)
    assert recorded.info.run_id == run.run_id
    assert recorded.data.tags["wharf.artifact_sha256"] == artifact
    assert not kept.exists()
    assert train(workspace, "tumor").reused


@slow
def test_no_mlflow_known(workspace: Workspace) -> None:
    with pytest.raises(Unavailable, match=r"no MLflow server is known: .*; the trained run is kept in "):
        train(workspace, "tumor")
    assert len(list((workspace.state / "runs").glob("*/run.json"))) == 1


# Where a process is killed with SIGKILL: the name of a function, before or after it did its work.
MOMENTS = [
    ("ci.training.export", "export", "after"),  # in the middle of staging
    ("ci.training.tracking", "_record", "before"),  # the run exists, and is empty
    ("mlflow.tracking.MlflowClient", "log_artifacts", "after"),
    ("ci.training.tracking", "complete", "after"),  # recorded, and still staged
]

_KILL = """
import os, pkgutil, signal, sys
from ci.cli import main
place, name, when = sys.argv[1:4]
target = pkgutil.resolve_name(place)
real = getattr(target, name)
def killed(*arguments, **named):
    if when == "after":
        real(*arguments, **named)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(target, name, killed)
main(["train", "tumor"])
"""


@slow
@pytest.mark.parametrize(("place", "name", "when"), MOMENTS)
def test_killed_and_run_again(workspace: Workspace, mlflow_db: str, place: str, name: str, when: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", _KILL, place, name, when],
        cwd=workspace.root,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    complete = name == "complete"
    assert [run.data.tags["wharf.state"] == "complete" for run in runs(mlflow_db)] in ([], [complete])
    run = train(workspace, "tumor")
    (recorded,) = runs(mlflow_db)
    assert recorded.info.run_id == run.run_id
    assert recorded.data.tags["wharf.state"] == "complete"
    assert recorded.data.metrics == run.metrics
    assert len(recorded.inputs.dataset_inputs) == 1
    assert sorted(file.path for file in MlflowClient(mlflow_db).list_artifacts(run.run_id)) == [
        "holdout.parquet",
        "model",
        "plots",
        "reference.parquet",
    ]
    assert [path.name for path in (workspace.state / "runs").iterdir() if path.is_dir()] == []


@slow
def test_wandb_offline_files(
    workspace: Workspace, mlflow_db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    train(workspace, "tumor")
    (file,) = (workspace.state / "wandb").glob("offline-run-*/run-*.wandb")
    content = file.read_bytes()
    assert b"holdout.roc_auc" in content and b"wharf.commit" in content
    assert runs(mlflow_db)[0].data.tags["wharf.wandb"] == "offline"
    assert "W&B: offline files in " in capsys.readouterr().err
    assert not (ROOT / "wandb").exists()


@slow
def test_wandb_that_fails_does_not_lose_the_run(
    workspace: Workspace, mlflow_db: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setattr("ci.training.weights_and_biases._INIT_S", 3.0)
    train(workspace, "tumor")
    (recorded,) = runs(mlflow_db)
    assert recorded.data.tags["wharf.wandb"] == "failed"
    assert recorded.data.tags["wharf.state"] == "complete"
    assert "W&B: failed (" in capsys.readouterr().err


def test_bad_data_trains_nothing(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    pd.DataFrame({"mean_radius": [1.0, np.nan]}).to_csv(path, index=False)
    with pytest.raises(Mistake) as refused:
        train(workspace, "tumor", data=path)
    assert "tumor: data: 2 rows, at least 400 are needed (data.min_rows)" in refused.value.lines
    assert [entry for entry in (workspace.state / "runs").iterdir() if entry.is_dir()] == []


def test_a_repository_without_a_commit(tmp_path: Path, workspace: Workspace) -> None:
    (workspace.root / ".git").rename(tmp_path / "gone")
    with pytest.raises(Mistake, match="has no git commit: a run must name the code"):
        train(workspace, "tumor")


def test_overrides(workspace: Workspace) -> None:
    spec = load_spec(workspace, "tumor")
    assert parse_overrides(spec, ["C=1", "max_iter=50"]) == {"C": 1.0, "max_iter": 50}
    with pytest.raises(Mistake) as refused:
        parse_overrides(spec, ["max_itr=1", "max_iter=1.5", "C=much", "C", "C=nan"])
    assert refused.value.lines == [
        "--set max_itr: tumor has no training parameter 'max_itr' (did you mean 'max_iter'?)",
        "--set max_iter: must be a whole number, not '1.5'",
        "--set C: must be a number, not 'much'",
        "--set C: must be NAME=VALUE",
        "--set C: must be a number, not 'nan'",
    ]
    assert refused.value.tip == "parameters: C=0.3, max_iter=2000"


def test_unknown_model(workspace: Workspace) -> None:
    with pytest.raises(Mistake, match=r"no model 'tumour' in models/ \(did you mean 'tumor'\?\)"):
        train(workspace, "tumour")


def test_without_network_the_command_says_one_line(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = workspace.models / "movies" / "model.yaml"
    url = f"http://127.0.0.1:{free_port()}/ml-100k.zip"
    spec.write_text(spec.read_text().replace("https://files.grouplens.org/datasets/movielens/ml-100k.zip", url))
    monkeypatch.chdir(workspace.root)
    assert cli.main(["train", "movies"]) == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("ERROR", "TIP"))]
    assert lines == [
        f"ERROR  the data of movies cannot be downloaded from {url}",
        "TIP    download it elsewhere and give it with `wharf train movies --data FILE`",
    ]
