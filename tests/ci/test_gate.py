"""The gate on real runs of a real MLflow server."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ci import gate as step
from ci.cli import main
from ci.errors import Mistake, Unavailable
from ci.gate import GateRefusal, gate
from ci.gating import evidence as record
from ci.gating.evidence import Evidence
from ci.mlflow_api.store import open_store
from ci.registry import read_evidence
from ci.workspace import Workspace
from tests.ci.gated import add_model, add_run, fresh_name, logistic, release, rows, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def name(workspace: Workspace, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of this test's own, and MLFLOW_TRACKING_URI set to the session's server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.chdir(workspace.root)
    chosen = fresh_name()
    add_model(workspace, chosen)
    return chosen


def failed(refusal: pytest.ExceptionInfo[GateRefusal]) -> list[str]:
    return [check.name for check in refusal.value.evidence.failed]


def test_a_good_run_passes_and_carries_its_evidence(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = add_run(workspace, mlflow_uri, name)
    found = gate(workspace, name)
    assert found.passed and not found.reused
    assert [check.name for check in found.checks] == [
        "artifact.sha256",
        "data.digest",
        "run.commit",
        "run.committed",
        "artifact.size_mb",
        "data.unseen",
        "predictions.finite",
        "metric.roc_auc.min",
        "metric.roc_auc.champion",
        "metric.log_loss.max",
        *(check.name for check in found.checks if check.name.startswith("slice.a.")),
        "latency.p99_ms",
    ]
    metric = found.metrics["roc_auc"]
    assert metric.low is not None and metric.high is not None
    assert 0.8 < metric.low < metric.value < metric.high <= 1

    store = open_store(mlflow_uri)
    again = store.run(run.id)
    assert again is not None and again.tags["wharf.verdict"] == "passed"
    content = store.read(again, "evidence/evidence.json")
    sha256 = hashlib.sha256(content).hexdigest()
    assert again.tags["wharf.evidence_sha256"] == sha256
    assert store.read(again, f"evidence/{sha256[:16]}/evidence.json") == content
    assert json.loads(content)["verdict"] == "passed"
    assert json.loads(content)["schema"] == 1
    page = store.read(again, "evidence/report.html").decode()
    assert page == (workspace.state / step.report_file(name, run.id)).read_text()
    assert "<svg" in page and sha256 in page and "http://" not in page and "https://" not in page


def test_gating_again_measures_nothing(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    add_run(workspace, mlflow_uri, name)
    first = gate(workspace, name)
    second = gate(workspace, name)
    assert second.reused and second == first


def test_two_gates_of_equal_runs_differ_in_latency_only(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    def without_latency(found: Evidence) -> dict[str, object]:
        raw = json.loads(record.dump(found))
        del raw["run"], raw["created"]
        raw["checks"] = [check for check in raw["checks"] if check["name"] != "latency.p99_ms"]
        return raw

    one, two = (gate(workspace, name, add_run(workspace, mlflow_uri, name).id) for _ in range(2))
    assert without_latency(one) == without_latency(two)


def test_other_thresholds_need_a_new_evidence(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    add_run(workspace, mlflow_uri, name)
    gate(workspace, name)
    add_model(workspace, name, artifact_mb=1e-9)
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    assert failed(refusal) == ["artifact.size_mb"]


def test_a_refusal_names_each_failed_check_with_figure_and_bound(
    workspace: Workspace, mlflow_uri: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = add_run(workspace, mlflow_uri, name, artifact=logistic((0.0, 1.0, 0.0)))
    assert main(["gate", name]) == 3
    told = capsys.readouterr().err
    assert f"gate of '{name}' refused run {run.id}" in told
    assert "metric.roc_auc.min: 0." in told and "(bound 0.8)" in told
    assert "metric.log_loss.max: 0." in told and "(bound 0.6)" in told
    stored = open_store(mlflow_uri).run(run.id)
    assert stored is not None
    kept = read_evidence(open_store(mlflow_uri), stored)
    assert kept is not None and kept[0].verdict == "refused"


def test_a_model_worse_than_the_champion_is_refused(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    champion = add_run(workspace, mlflow_uri, name)
    release(workspace, "dev", name, 4, champion)
    release(workspace, "staging", name, 3, champion)
    add_run(workspace, mlflow_uri, name, artifact=logistic((3.0, 1.8, 0.0)))
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    assert failed(refusal) == ["metric.roc_auc.champion"]
    rival = refusal.value.evidence.champion
    assert rival is not None and (rival.environment, rival.version, rival.run) == ("staging", 3, champion.id)
    check = refusal.value.evidence.failed[0]
    assert check.bound == -0.02 and check.value is not None and check.value < -0.02
    assert "of version 3 in staging" in check.detail


def test_a_champion_that_trained_on_the_held_out_rows_is_no_measure(
    workspace: Workspace, mlflow_uri: str, name: str
) -> None:
    seen = pd.concat([rows(200, seed=2), rows().head(7)], ignore_index=True)
    release(workspace, "dev", name, 4, add_run(workspace, mlflow_uri, name, reference=seen))
    challenger = add_run(workspace, mlflow_uri, name)
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name, challenger.id)
    assert failed(refusal) == ["champion.unseen"]
    check = refusal.value.evidence.failed[0]
    assert check.value == 7 and "version 4 in dev" in check.detail and "did seed, columns or holdout" in check.detail
    add_model(workspace, name, metrics={"roc_auc": {"min": 0.8}})  # nothing is compared with the champion
    assert gate(workspace, name, challenger.id).passed


def test_a_champion_without_its_training_rows_fails_the_check(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    champion = add_run(workspace, mlflow_uri, name)
    release(workspace, "dev", name, 1, champion)
    open_store(mlflow_uri).write(champion, "reference.parquet", b"no table")
    challenger = add_run(workspace, mlflow_uri, name)
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name, challenger.id)
    assert failed(refusal) == ["champion.unseen"]


def test_an_equal_model_passes_against_the_champion(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    release(workspace, "dev", name, 1, add_run(workspace, mlflow_uri, name))
    challenger = add_run(workspace, mlflow_uri, name)
    found = gate(workspace, name, challenger.id)
    check = next(check for check in found.checks if check.name == "metric.roc_auc.champion")
    assert check.passed and check.value == 0.0


def test_a_champion_that_cannot_be_loaded_fails_the_check(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    champion = add_run(workspace, mlflow_uri, name)
    release(workspace, "dev", name, 1, champion)
    open_store(mlflow_uri).write(champion, "model/artifact.onnx", b"not what was released")
    add_run(workspace, mlflow_uri, name)
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    assert failed(refusal) == ["metric.roc_auc.champion"]
    assert "could not be checked: version 1 in dev" in refusal.value.evidence.failed[0].detail


def test_the_evidence_of_a_run_that_became_champion_stays(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    old, new = (add_run(workspace, mlflow_uri, name) for _ in range(2))
    release(workspace, "dev", name, 1, old)
    met = gate(workspace, name, new.id)
    assert met.champion is not None and met.champion.run == old.id
    release(workspace, "dev", name, 2, new)
    assert gate(workspace, name, new.id).reused
    # The old one has to face the new champion now.
    assert not gate(workspace, name, old.id).reused


def test_nan_predictions_are_refused(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = add_run(workspace, mlflow_uri, name, artifact=logistic((float("nan"), 0.0, 0.0)))
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    names = failed(refusal)
    assert {"predictions.finite", "metric.roc_auc.min", "metric.log_loss.max"} <= set(names)
    finite = next(check for check in refusal.value.evidence.failed if check.name == "predictions.finite")
    assert finite.value == 300 and "300 of 300 rows" in finite.detail
    stored = open_store(mlflow_uri).run(run.id)
    assert stored is not None
    json.loads(open_store(mlflow_uri).read(stored, record.NEWEST))  # strict JSON: no NaN in it


def test_one_flipped_byte_is_refused_even_after_it_passed(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = add_run(workspace, mlflow_uri, name)
    gate(workspace, name)
    content = bytearray(logistic())
    content[len(content) // 2] ^= 1
    open_store(mlflow_uri).write(run, "model/artifact.onnx", bytes(content))
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    names = failed(refusal)
    assert names[0] == "artifact.sha256"
    assert {"predictions.finite", "metric.roc_auc.min", "latency.p99_ms"} <= set(names)


@pytest.mark.parametrize("column", ["a", "y"])
def test_a_missing_column_fails_the_checks(workspace: Workspace, mlflow_uri: str, name: str, column: str) -> None:
    add_run(workspace, mlflow_uri, name, holdout=rows().drop(columns=column))
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    assert "metric.roc_auc.min" in failed(refusal)
    assert any(f"column '{column}'" in line for line in refusal.value.lines)


def test_missing_holdout_rows_fail_the_checks(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    add_run(workspace, mlflow_uri, name, holdout=rows().head(0))
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    assert {"data.unseen", "predictions.finite", "latency.p99_ms"} <= set(failed(refusal))
    assert refusal.value.evidence.rows == 0


def test_rows_that_training_saw_are_refused(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    add_run(workspace, mlflow_uri, name, reference=rows().head(120))
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    assert failed(refusal) == ["data.unseen"]
    assert refusal.value.evidence.failed[0].value == 120


def test_an_artifact_of_other_classes_is_refused(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    add_run(workspace, mlflow_uri, name, described=serving(name, logistic(), ("yes", "no")))
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    assert any("another order" in line for line in refusal.value.lines)


@pytest.mark.parametrize("said", ["unknown", "c" * 64])
def test_a_data_digest_that_is_not_the_recorded_one_is_refused(
    workspace: Workspace, mlflow_uri: str, name: str, said: str
) -> None:
    add_run(workspace, mlflow_uri, name, tags={"wharf.data_sha256": said})
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    assert failed(refusal) == ["data.digest"]


@pytest.mark.parametrize(("dirty", "told"), [("true", "commit them and train again"), ("", "tag wharf.dirty is ''")])
def test_a_run_from_uncommitted_code_is_refused(
    workspace: Workspace, mlflow_uri: str, name: str, dirty: str, told: str
) -> None:
    run = add_run(workspace, mlflow_uri, name)
    gate(workspace, name)
    open_store(mlflow_uri).set_run_tags(run.id, {"wharf.dirty": dirty})  # evidence from before does not help it
    with pytest.raises(GateRefusal) as refusal:
        gate(workspace, name)
    assert failed(refusal) == ["run.committed"]
    assert told in refusal.value.evidence.failed[0].detail


def test_runs_that_cannot_be_gated_are_mistakes(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    with pytest.raises(Mistake, match="no finished run"):
        gate(workspace, name)
    unfinished = add_run(workspace, mlflow_uri, name, tags={"wharf.state": "staged"})
    with pytest.raises(Mistake, match="no finished run"):
        gate(workspace, name)
    with pytest.raises(Mistake, match="is not complete"):
        gate(workspace, name, unfinished.id)
    with pytest.raises(Mistake, match="not a run id"):
        gate(workspace, name, "latest")
    with pytest.raises(Mistake, match="has no run"):
        gate(workspace, name, "0" * 32)
    other = add_run(workspace, mlflow_uri, name, tags={"wharf.model": "other"})
    with pytest.raises(Mistake, match="belongs to model 'other'"):
        gate(workspace, name, other.id)


def test_json_is_the_stored_record(
    workspace: Workspace, mlflow_uri: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = add_run(workspace, mlflow_uri, name)
    assert main(["gate", name, "--json"]) == 0
    stored = open_store(mlflow_uri).run(run.id)
    assert stored is not None
    assert capsys.readouterr().out.encode() == open_store(mlflow_uri).read(stored, record.NEWEST)


def test_mlflow_down_is_said_in_one_line(
    workspace: Workspace, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    begun = time.monotonic()
    assert main(["gate", name]) == 4
    assert time.monotonic() - begun < 5
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ERROR")]
    assert lines == ["ERROR  MLflow at http://127.0.0.1:9 does not answer (ConnectionError)"]


def test_mlflow_that_goes_down_meanwhile_is_not_a_failed_check(
    workspace: Workspace, mlflow_uri: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_run(workspace, mlflow_uri, name)
    store = open_store(mlflow_uri)

    def down(*_: object) -> Path:
        raise Unavailable("MLflow is gone")

    monkeypatch.setattr(store, "download", down)
    monkeypatch.setattr(step, "connect", lambda _: store)
    with pytest.raises(Unavailable, match="gone"):
        gate(workspace, name)


def _killed_after(workspace: Workspace, uri: str, name: str, writes: int) -> None:
    """Gate in a process that kills itself after `writes` files were stored."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    store = open_store(uri)
    write, done = store.write, []

    def counting(*arguments: object) -> None:
        if len(done) == writes:
            os.kill(os.getpid(), signal.SIGKILL)
        write(*arguments)  # type: ignore[arg-type]
        done.append(arguments)

    store.write = counting  # type: ignore[method-assign]
    store.set_run_tags = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    step.connect = lambda _: store
    gate(workspace, name)


@pytest.mark.parametrize("writes", [0, 2, 4])
def test_killed_while_storing_is_as_if_it_had_never_run(
    workspace: Workspace, mlflow_uri: str, name: str, writes: int
) -> None:
    run = add_run(workspace, mlflow_uri, name)
    child = multiprocessing.get_context("spawn").Process(
        target=_killed_after, args=(workspace, mlflow_uri, name, writes)
    )
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    left = open_store(mlflow_uri).run(run.id)
    assert left is not None and read_evidence(open_store(mlflow_uri), left) is None
    found = gate(workspace, name)
    assert found.passed and not found.reused
    assert gate(workspace, name).reused


def test_slices_and_metrics_survive_the_round_trip(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    add_run(workspace, mlflow_uri, name)
    found = gate(workspace, name)
    assert record.load(record.dump(found), "here") == found
    assert all(np.isfinite(check.value) for check in found.checks if check.value is not None)
