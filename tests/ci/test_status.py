"""`wharf status` and `wharf logs`: what they print, from files as the agent leaves them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from ci import logs, status
from ci.cli import main
from ci.errors import Mistake
from ci.workspace import Workspace

ENTRY = {
    "model": "tumor",
    "environment": "dev",
    "target": "local",
    "version": 3,
    "desired": 3,
    "sync": "Synced",
    "health": "Healthy",
    "url": "http://127.0.0.1:8400",
    "message": "",
    "pid": 7,
    "restarts": 1,
    "since": 1763712000.5,
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for environment, after in (("dev", "null"), ("staging", "dev"), ("prod", "staging")):
        path = tmp_path / "gitops" / "environments" / f"{environment}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        source = Path(__file__).parents[2] / "gitops" / "environments" / path.name
        path.write_text(source.read_text())
        assert f"after: {after}" in path.read_text()
    for model in ("tumor", "digits"):
        (tmp_path / "models" / model).mkdir(parents=True)
        (tmp_path / "models" / model / "model.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return Workspace(tmp_path)


def report(workspace: Workspace, *entries: dict[str, object], alive: bool = True) -> None:
    """Leave what an agent leaves; this test process plays the agent."""
    path = status.report_file(workspace)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"revision": "f" * 40, "updated": time.time(), "pid": os.getpid(), "problem": "", "applications": entries}
    path.write_text(json.dumps(content))
    created = psutil.Process().create_time() - (0 if alive else 1000)
    agent = {"pid": os.getpid(), "created": created}
    (workspace.state / "platform.json").write_text(json.dumps({"agent": agent}))


def test_json_has_one_object_per_model_and_environment(
    workspace: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    report(workspace, ENTRY, {**ENTRY, "environment": "prod"}, {**ENTRY, "environment": "staging"})
    assert main(["status", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [each["environment"] for each in found] == ["dev", "staging", "prod"], "in the order of promotion"
    assert found[0] == ENTRY


def test_the_table_is_for_people(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    report(workspace, ENTRY, {**ENTRY, "model": "digits", "health": "Degraded", "version": None, "message": "why"})
    assert main(["status"]) == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["MODEL", "ENVIRONMENT", "VERSION", "SYNC", "HEALTH", "ADDRESS"]
    assert first.split() == ["digits", "dev", "-", "Synced", "Degraded", "http://127.0.0.1:8400", "why"]
    assert second.split() == ["tumor", "dev", "3", "Synced", "Healthy", "http://127.0.0.1:8400"]


def test_one_model_or_environment_can_be_asked_for(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    report(workspace, ENTRY, {**ENTRY, "model": "digits"}, {**ENTRY, "environment": "prod"})
    main(["status", "tumor", "--env", "prod", "--json"])
    (only,) = json.loads(capsys.readouterr().out)
    assert (only["model"], only["environment"]) == ("tumor", "prod")
    assert main(["status", "tumr"]) == 2
    assert "did you mean 'tumor'?" in capsys.readouterr().err


def test_nothing_was_ever_started(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert status.applications(workspace) == []
    assert main(["status"]) == 0
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == (
        "",
        ["nothing runs: the agent was never started", "TIP    start the local platform with `make up`"],
    )
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_without_an_agent_nothing_is_known(workspace: Workspace) -> None:
    report(workspace, ENTRY, alive=False)
    (found,) = status.applications(workspace)
    assert (found.sync, found.health, found.version) == ("Unknown", "Missing", 3)
    assert found.message == "the agent does not run; `wharf up` starts it"


def test_an_agent_that_went_silent_is_not_believed(workspace: Workspace) -> None:
    report(workspace, ENTRY)
    assert status.applications(workspace)[0].well
    os.utime(status.report_file(workspace), (time.time() - 60, time.time() - 60))
    (found,) = status.applications(workspace)
    assert found.sync == "Unknown"
    assert found.message.startswith("the agent has not reported for 60 seconds")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_a_broken_report_says_nothing_runs(workspace: Workspace, capsys: pytest.CaptureFixture[str], text: str) -> None:
    report(workspace, alive=False)
    status.report_file(workspace).write_text(text)
    assert main(["status"]) == 0
    assert capsys.readouterr().err == "nothing runs: the agent does not run; `wharf up` starts it\n"


def test_settings_that_are_being_edited_hide_nothing(workspace: Workspace) -> None:
    report(workspace, ENTRY, {**ENTRY, "environment": "prod"})
    (workspace.gitops / "environments" / "dev.yaml").write_text("broken: [")
    assert [each.environment for each in status.applications(workspace)] == ["dev", "prod"]


def test_an_entry_of_a_newer_agent_is_understood(workspace: Workspace) -> None:
    report(workspace, {**ENTRY, "something": "new"})
    assert asdict(status.applications(workspace)[0]) == ENTRY


def test_it_imports_nothing_heavy(workspace: Workspace) -> None:
    report(workspace, ENTRY)
    program = (
        "import sys; from ci.cli import main; code = main(['status', '--json']);"
        "heavy = {'mlflow', 'sklearn', 'pandas', 'numpy', 'bentoml', 'aiohttp'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=workspace.root,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == "[]\n"


def test_logs_of_one_environment_and_of_all(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.logs.mkdir(parents=True)
    (workspace.logs / "dev-tumor.log").write_text("".join(f"line {i}\n" for i in range(100)))
    main(["logs", "tumor", "-n", "2"])
    assert capsys.readouterr().out == "line 98\nline 99\n"
    (workspace.logs / "prod-tumor.log").write_text("of prod\n")
    main(["logs", "tumor", "-n", "1"])
    assert capsys.readouterr().out == "dev | line 99\nprod | of prod\n"
    main(["logs", "tumor", "--env", "prod"])
    assert capsys.readouterr().out == "of prod\n"


def test_logs_of_the_parts_and_of_what_is_not_there(workspace: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    workspace.logs.mkdir(parents=True)
    (workspace.logs / "mlflow.log").write_text("ready\n")
    main(["logs", "mlflow"])
    assert capsys.readouterr().out == "ready\n"
    for words, line in (
        (["agent"], "agent has no log: nothing of it was started here"),
        (["tumor", "--env", "prod"], "tumor has no log in prod: nothing of it was started here"),
        (["tumr"], "no model 'tumr' in models/ (did you mean 'tumor'?)"),
    ):
        assert main(["logs", *words]) == 2
        assert line in capsys.readouterr().err


def test_logs_can_be_followed_over_a_new_file(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace.logs.mkdir(parents=True)
    log = workspace.logs / "dev-tumor.log"
    log.write_text("old and long enough\n")
    printed: list[str] = []
    monkeypatch.setattr(logs, "_print", lambda _name, lines, _many: printed.extend(lines))
    place = logs._show("dev", log, 0, False)
    with log.open("a") as stream:
        stream.write("one\nhalf")
    place = logs._show_new("dev", log, place, False)
    with log.open("a") as stream:
        stream.write(" done\n")
    place = logs._show_new("dev", log, place, False)
    log.write_text("anew\n")
    place = logs._show_new("dev", log, place, False)
    assert printed == ["one", "half done", "anew"]
    log.unlink()
    assert logs._show_new("dev", log, place, False) == 0


def test_log_files_of_a_model_that_was_removed_are_still_shown(workspace: Workspace) -> None:
    workspace.logs.mkdir(parents=True)
    (workspace.logs / "dev-gone.log").touch()
    assert list(logs.log_files(workspace, "gone")) == ["dev"]
    with pytest.raises(Mistake):
        logs.log_files(workspace, "never")
