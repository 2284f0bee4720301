"""`wharf retrain`: nothing fires, a dry run, the newer rows, and (slow) the way from drift to a proposal."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from ci import cli
from ci.demo import _CHANGES, read_cases, shift
from ci.errors import Refusal
from ci.label import Given, label
from ci.live.newer_rows import assemble
from ci.monitor import monitor
from ci.retrain import retrain
from ci.shell import git
from ci.training import data
from ci.workspace import Workspace, load_spec
from tests.ci.live_traffic import entry, healthy, reference, release, write_log

QUIET = "retraining:\n  drift: {features: 3}\n"


@pytest.fixture
def watched(workspace: Workspace, mlflow_db: str) -> Workspace:
    """tumor version 1 in dev with unchanged traffic; only drift can start a retraining."""
    path = workspace.model("tumor") / "model.yaml"
    before, _, rest = path.read_text().partition("retraining:\n")
    path.write_text(before + QUIET + rest[rest.index("\ndrift:") :])
    git(workspace.root, "commit", "--quiet", "--all", "--message=Retrain on drift only")
    release(workspace)
    reference(workspace, healthy(400, seed=1))
    return workspace


def log_rows(workspace: Workspace, values: np.ndarray) -> list[dict[str, object]]:
    lines = [entry(i // 5, values[i : i + 5].tolist(), time.time()) for i in range(0, len(values), 5)]
    write_log(workspace, lines, time.strftime("%Y-%m-%d", time.gmtime()))
    return lines


def test_nothing_fires(watched: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    log_rows(watched, healthy(400, seed=2))
    monkeypatch.chdir(watched.root)
    assert cli.main(["retrain", "tumor"]) == 0
    shown = capsys.readouterr().out
    assert "quiet  drift: 0 of 30 judged features drifted, 3 fire" in shown
    assert "no trigger fired: nothing to do" in shown
    assert not (watched.state / "retrain").exists()


def test_a_model_without_a_release_is_nothing_to_do(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(workspace.root)
    assert cli.main(["retrain", "tumor"]) == 0
    assert capsys.readouterr().out == "tumor has no release: nothing to do\n"
    assert cli.main(["retrain", "tumor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["challenger"] is None
    assert cli.main(["retrain", "tumor", "--env", "dev"]) == 2
    assert cli.main(["retrain", "tumor", "--force"]) == 2


def test_triggers_without_a_prediction_log_are_named(
    watched: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(watched.root)
    assert cli.main(["retrain", "tumor", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["unjudged"] == ["drift"]
    assert "not judged: drift: no prediction log is in .wharf/predictions/dev/tumor" in shown.err
    log_rows(watched, healthy(400, seed=2))
    assert cli.main(["retrain", "tumor", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["unjudged"] == []
    assert "not judged" not in shown.err


def test_a_dry_run_only_shows(
    watched: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_rows(watched, healthy(400, seed=2) * 2)
    monkeypatch.chdir(watched.root)
    assert cli.main(["retrain", "tumor", "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["why"], found["challenger"], found["run"]) == ("drift", None, None)
    assert found["triggers"][0]["fired"]
    assert not (watched.state / "retrain").exists() and not (watched.state / "runs").exists()


def test_an_interrupted_retraining_goes_on(watched: Workspace) -> None:
    """The note is all that is left after a kill, when the trigger itself is quiet again."""
    log_rows(watched, healthy(400, seed=2))
    note = watched.state / "retrain" / "dev-tumor.json"
    note.parent.mkdir()
    note.write_text('{"why": "schedule", "since": 1}')
    assert retrain(watched, "tumor", dry_run=True).why == "goes on with what was interrupted (schedule)"
    note.write_text("{broken")
    assert retrain(watched, "tumor", dry_run=True).why == "goes on with what was interrupted"


def test_newer_rows_are_the_labelled_ones_once_and_in_one_order(watched: Workspace) -> None:
    spec = load_spec(watched, "tumor")
    values = healthy(10, seed=3)
    values[5] = values[0]
    lines = log_rows(watched, values)
    names = ["benign", "malignant"]
    given = [Given(str(line["id"]), row, names[row % 2], "") for line in lines for row in range(4)]
    given.append(Given("r1", 0, "benign", ""))
    label(watched, "tumor", "dev", given)
    frame = assemble(watched, spec, "dev")
    assert list(frame.columns) == [*spec.data.names(), "diagnosis"]
    assert len(frame) == 7  # eight labelled, of which one repeats another
    assert frame["diagnosis"].dtype == np.int64 and sorted(frame["diagnosis"]) == [0, 0, 0, 1, 1, 1, 1]
    expected = {tuple(row) for at, row in enumerate(values.tolist()) if at % 5 < 4}
    assert {tuple(row) for row in frame[spec.data.names()].to_numpy().tolist()} == expected
    assert frame["mean_radius"].is_monotonic_increasing
    assert assemble(watched, spec, "staging").empty


def test_live_rows_that_break_the_contract_do_not_stop_a_retraining(
    watched: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = load_spec(watched, "tumor")
    values = healthy(10, seed=3)
    values[3, 3] = 1e9  # mean_area, far above its max
    values[4, 0] = -1.0
    lines = log_rows(watched, values)
    label(watched, "tumor", "dev", [Given(str(line["id"]), row, "benign", "") for line in lines for row in range(5)])
    frame = assemble(watched, spec, "dev")
    assert len(frame) == 8
    assert "2 of 10 labelled rows break a column rule of the contract: left out" in capsys.readouterr().err
    source = data.resolve(watched, spec)
    assert len(data.load(watched, spec, source, frame)) == 569 + 8


@pytest.fixture
def trained(workspace: Workspace, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """tumor trained, gated, registered, built and released to dev of a local origin."""
    from ci.build import build
    from ci.gate import gate
    from ci.local import origin
    from ci.promote import promote
    from ci.registry import register
    from ci.train import train

    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    origin.ensure(workspace)
    run = train(workspace, "tumor")
    gate(workspace, "tumor", run.run_id)
    version = register(workspace, "tumor", run.run_id)
    build(workspace, "tumor", version)
    promote(workspace, "tumor", "dev", version=version)
    return workspace


def shifted_traffic(workspace: Workspace) -> None:
    """Log what `wharf demo` would have sent: the real rows as the changed instrument measures them, with labels."""
    spec = load_spec(workspace, "tumor")
    current = monitor(workspace, "tumor", "dev")
    cases = read_cases(workspace, spec, current.run)
    rows = shift(spec, [case.row for case in cases], _CHANGES["tumor"])
    lines = [entry(i, rows[i * 5 : i * 5 + 5], time.time(), version=current.version) for i in range(len(rows) // 5)]
    write_log(workspace, lines, time.strftime("%Y-%m-%d", time.gmtime()))
    given = [Given(f"r{i // 5}", i % 5, case.label, "") for i, case in enumerate(cases[: len(lines) * 5])]
    label(workspace, "tumor", "dev", given)


def branches(workspace: Workspace) -> list[str]:
    found = git(workspace.state / "origin.git", "for-each-ref", "--format=%(refname:short)", "refs/heads")
    return sorted(found.split())


@pytest.mark.slow
def test_from_drift_to_a_proposal(trained: Workspace) -> None:
    shifted_traffic(trained)
    before = git(trained.state / "origin.git", "rev-parse", "main")
    first = retrain(trained, "tumor", "dev")
    assert "drift" in first.why
    assert first.rows and first.rows > 500
    assert first.challenger and first.challenger > first.version
    assert first.proposed_to == "dev" and first.changed
    assert branches(trained) == ["main", first.branch]
    assert git(trained.state / "origin.git", "rev-parse", "main") == before, "a retraining must not deploy"

    again = retrain(trained, "tumor", "dev")
    assert (again.run, again.challenger, again.changed) == (first.run, first.challenger, False)
    assert "proposed before" in again.summary
    assert branches(trained) == ["main", first.branch]


@pytest.mark.slow
def test_the_gate_refuses_a_bad_challenger_and_nothing_is_proposed(trained: Workspace) -> None:
    """Labels at random teach it nothing."""
    rng = np.random.default_rng(0)
    spec = load_spec(trained, "tumor")
    current = monitor(trained, "tumor", "dev")
    rows = shift(spec, [case.row for case in read_cases(trained, spec, current.run)], _CHANGES["tumor"])
    lines = [entry(i, rows[i * 5 : i * 5 + 5], time.time(), version=current.version) for i in range(100)]
    write_log(trained, lines, time.strftime("%Y-%m-%d", time.gmtime()))
    names = ["benign", "malignant"]
    label(
        trained,
        "tumor",
        "dev",
        [Given(f"r{i}", row, str(rng.choice(names)), "") for i in range(100) for row in range(5)],
    )
    with pytest.raises(Refusal) as caught:
        retrain(trained, "tumor", "dev")
    assert any("metric.roc_auc" in line for line in caught.value.lines)
    assert branches(trained) == ["main"]
    assert not list(Path(trained.state / "retrain").glob("*.json"))
