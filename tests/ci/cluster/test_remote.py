"""Training and batch on the cluster with a real MLflow; the Job is a process here (tests/cluster has the rest)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from ci import cli
from ci.batching import source
from ci.cluster import jobs
from ci.errors import Mistake, Refusal, Unavailable
from ci.files import sha256_file
from ci.mlflow_api import files
from ci.mlflow_api.files import FileStore
from ci.shell import git
from ci.workspace import Workspace
from tests.bentos import artifacts
from tests.ci import batch_inputs as inputs

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(workspace: Workspace, mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[jobs.Work]:
    """A workspace with a cluster whose Jobs run here, in a checkout of HEAD; returns the Jobs that were run."""
    access = {"provider": "node", "kubeconfig": "/kubeconfig", "context": "c", "registry": "wharf.local"}
    access |= {"push": "127.0.0.1:5050", "origin": ""}
    known = {"mlflow": {"url": mlflow_uri}, "cluster": access}
    workspace.state.mkdir(exist_ok=True)
    (workspace.state / "platform.json").write_text(json.dumps(known))
    monkeypatch.chdir(workspace.root)
    # What Jobs run; the copy of the repository that the tests make has no `ci` of its own.
    done: list[jobs.Work] = []

    def run_job(_cluster: object, work: jobs.Work, show: Any = None) -> None:
        checkout = tmp_path / f"checkout-{len(done)}"
        git(tmp_path, "clone", "--quiet", str(workspace.root), str(checkout))
        done.append(work)
        assert work.command[:3] == ("python", "-m", "ci.cluster.inside")
        env = {
            **os.environ,
            **work.env,
            "MLFLOW_TRACKING_URI": mlflow_uri,
            "PYTHONPATH": str(Path(cli.__file__).parents[1]),
        }
        ended = subprocess.run([sys.executable, *work.command[1:]], cwd=checkout, env=env, check=False, timeout=200)
        if ended.returncode:
            raise {2: Mistake, 3: Refusal}.get(ended.returncode, Unavailable)(f"ended with {ended.returncode}")

    monkeypatch.setattr("ci.cluster.jobs.run_job", run_job)
    for module in ("training", "batching"):
        monkeypatch.setattr(f"ci.cluster.{module}.connect", lambda _: None, raising=False)
    monkeypatch.setattr("ci.images.trainer.ensure", lambda *_: f"wharf.local/wharf-trainer@sha256:{'0' * 64}")
    return done


def test_a_training_on_the_cluster_is_the_same_run(
    workspace: Workspace, cluster: list[jobs.Work], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", "tumor", "--set", "C=0.41", "--json"]
    assert cli.main([*words, "--on", "cluster"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["reused"] is False and first["metrics"]["holdout.roc_auc"] > 0.97
    (work,) = cluster
    assert work.commit == git(workspace.root, "rev-parse", "HEAD")

    assert cli.main([*words, "--on", "cluster"]) == 0
    assert json.loads(capsys.readouterr().out) == {**first, "reused": True}
    assert cli.main(words) == 0  # and trained here it would be the same
    assert json.loads(capsys.readouterr().out) == {**first, "reused": True}
    assert len(cluster) == 1


def test_code_in_no_commit_is_refused(
    workspace: Workspace, cluster: list[jobs.Work], capsys: pytest.CaptureFixture[str]
) -> None:
    train = workspace.models / "tumor" / "train.py"
    train.write_text(train.read_text() + "# changed\n")
    assert cli.main(["train", "tumor", "--on", "cluster"]) == 2
    said = capsys.readouterr().err
    assert "models/tumor/train.py: is not committed, and a Job runs committed code only" in said
    assert cluster == []


def test_another_mlflow_is_refused(
    cluster: list[jobs.Work], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert cli.main(["train", "tumor", "--on", "cluster"]) == 2
    assert "MLFLOW_TRACKING_URI is set: a Job records in the cluster's own MLflow" in capsys.readouterr().err


def test_without_a_cluster_it_says_how_to_get_one(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.root)
    assert cli.main(["train", "tumor", "--on", "cluster"]) == 4
    assert "make cluster" in capsys.readouterr().err


def test_a_file_travels_in_pieces_once(mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "PIECE", 1000)
    store = FileStore(mlflow_uri)
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(4321))
    digest, sent = sha256_file(path), list[int]()
    run = store.send(path, digest, sent.append)
    assert sent == [1000, 2000, 3000, 4000, 4321]
    assert store.send(path, digest, sent.append).id == run.id and len(sent) == 5
    target = store.receive(run.id, digest, tmp_path / "there" / "data.bin")
    assert target.read_bytes() == path.read_bytes()
    with pytest.raises(Refusal, match="its file has sha256"):
        store.receive(run.id, "0" * 64, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_file_that_was_cut_off_is_sent_from_there(
    mlflow_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PIECE", 1000)
    store = FileStore(mlflow_uri)
    path = tmp_path / "data.bin"
    path.write_bytes(os.urandom(3500))
    digest = sha256_file(path)

    def cut(bytes_there: int) -> None:
        if bytes_there == 2000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.send(path, digest, cut)
    written: list[str] = []
    write = FileStore.write

    def noted(self: FileStore, run: Any, name: str, content: bytes) -> None:
        written.append(name)
        write(self, run, name, content)

    monkeypatch.setattr(FileStore, "write", noted)
    run = store.send(path, digest)
    assert written == ["pieces/00002", "pieces/00003"]
    assert store.receive(run.id, digest, tmp_path / "copy").read_bytes() == path.read_bytes()


@pytest.fixture
def released(workspace: Workspace, cluster: list[jobs.Work], tmp_path: Path, mlflow_uri: str) -> Path:
    """A release of tumor whose artifact MLflow has, so that a Job can fetch it."""
    from tests.ci import gated

    made = artifacts.table_model(tmp_path / "tumor", max_rows=int.from_bytes(os.urandom(2), "big") + 1)
    digest = inputs.release(workspace, made)
    described = json.loads((made / "serving.json").read_text())
    content = (made / "artifact.onnx").read_bytes()
    run = gated.add_run(workspace, mlflow_uri, "tumor", artifact=content, described=described)
    path = workspace.root / "gitops" / "releases" / "dev" / "tumor.yaml"
    path.write_text(path.read_text().replace("a" * 32, run.id))
    git(workspace.root, "commit", "--quiet", "--all", "--message=The run")
    assert digest == run.tags["wharf.artifact_sha256"]
    return made


def test_a_batch_on_the_cluster_gives_the_same_output(
    workspace: Workspace, cluster: list[jobs.Work], released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_MOST_ROWS", 100_000)  # as in the Job, which is a process of its own
    rows = inputs.table(250_001, seed=int.from_bytes(os.urandom(4), "big"))
    path = inputs.write(tmp_path / "in.parquet", rows)
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    words = ["batch", "tumor", "--input", str(path)]
    assert cli.main([*words, "--output", str(here)]) == 0
    assert cluster == []
    assert cli.main([*words, "--output", str(there), "--on", "cluster"]) == 0
    assert len(cluster) == 1
    np.testing.assert_array_equal(pq.read_table(there)["a"], pq.read_table(here)["a"])
    assert there.read_bytes() == here.read_bytes()
    manifest = json.loads(Path(f"{there}.json").read_text())
    assert (manifest["on"], manifest["rows"], manifest["version"]) == ("cluster", 250_001, 3)

    again = tmp_path / "again.parquet"
    assert cli.main([*words, "--output", str(again), "--on", "cluster"]) == 0
    assert again.read_bytes() == here.read_bytes()
    assert len(cluster) == 1  # the parts were there


def test_parts_of_an_ended_job_are_not_predicted_again(
    workspace: Workspace,
    cluster: list[jobs.Work],
    released: Path,
    tmp_path: Path,
    mlflow_uri: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = inputs.write(tmp_path / "in.parquet", inputs.table(250_001, seed=int.from_bytes(os.urandom(4), "big")))
    output = tmp_path / "o.parquet"
    words = ["batch", "tumor", "--input", str(path), "--output", str(output), "--on", "cluster"]
    ended = jobs.run_job

    def dies(*_: object, **__: object) -> None:
        ended(*_, **__)  # it is done, and what follows is as if it had died before the last part
        store = FileStore(mlflow_uri)
        key = cluster[0].notes["key"]
        run = store.keyed_run(files.BATCHES, key, {})
        store.set_run_tags(run.id, {"wharf.predicted": "false"})
        raise Unavailable("the Job died")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ci.cluster.jobs.run_job", dies)
        assert cli.main(words) == 4
    assert not output.exists()
    assert cli.main(words) == 0
    assert "250,001 were predicted before" in capfd.readouterr().err
    assert len(cluster) == 2 and len(pq.read_table(output)) == 250_001
