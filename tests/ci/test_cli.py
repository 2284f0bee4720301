"""The one place that exits: what a user reads and what a script gets."""

from __future__ import annotations

import errno
import importlib
import os
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import pytest

from ci import cli
from ci.errors import Mistake, Refusal, Unavailable
from tests.mlflow_server import ROOT


@pytest.fixture
def step_that(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that makes `wharf probe` do what it is given."""
    (tmp_path / "models").mkdir()
    (tmp_path / "gitops").mkdir()
    monkeypatch.chdir(tmp_path)

    def install(action):
        module = types.ModuleType("probe_step")
        module.arguments = lambda parser: parser.add_argument("--count", type=int)  # type: ignore[attr-defined]
        module.main = lambda workspace, options: action()  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "probe_step", module)
        monkeypatch.setitem(cli.COMMANDS, "probe", ("probe_step", "probe things"))

    return install


def raising(error: Exception):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [(Mistake("a"), 2), (Refusal("a"), 3), (Unavailable("a"), 4), (KeyboardInterrupt(), 130), (ZeroDivisionError(), 1)],
)
def test_each_kind_of_failure_has_its_code(step_that, error, code) -> None:
    step_that(raising(error))
    assert cli.main(["probe"]) == code


def test_a_program_that_does_not_end_is_unavailable_and_no_bug(step_that, capsys) -> None:
    step_that(lambda: subprocess.run(["sleep", "60"], timeout=0.1, check=True))
    assert cli.main(["probe"]) == 4
    assert capsys.readouterr().err.splitlines() == ["ERROR  `sleep 60` did not end within 0.1 seconds"]


def test_an_error_is_one_line_a_fault_and_a_tip(step_that, capsys) -> None:
    step_that(raising(Mistake(["x.yaml: a: is missing", "x.yaml: b: is missing"], tip="add them")))
    cli.main(["probe"])
    assert capsys.readouterr().err.splitlines() == [
        "ERROR  x.yaml: a: is missing",
        "ERROR  x.yaml: b: is missing",
        "TIP    add them",
    ]


def test_a_crash_keeps_its_traceback_in_a_file(step_that, capsys) -> None:
    step_that(raising(ZeroDivisionError("by nought")))
    cli.main(["probe"])
    said = capsys.readouterr().err
    assert "CRASH  ZeroDivisionError: by nought" in said
    report = Path(said.strip().rsplit(" ", 1)[1])
    assert "Traceback" in report.read_text()
    report.unlink()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_what_the_machine_refuses_is_no_bug(step_that, capsys, code) -> None:
    step_that(raising(OSError(code, os.strerror(code), "some/file")))
    assert cli.main(["probe"]) == 4
    assert capsys.readouterr().err.splitlines() == [f"ERROR  some/file: {os.strerror(code)}"]


def test_any_other_error_of_the_machine_is_a_crash(step_that, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    step_that(raising(FileNotFoundError(errno.ENOENT, "No such file or directory", "some/file")))
    assert cli.main(["probe"]) == 1
    assert "CRASH  FileNotFoundError" in capsys.readouterr().err


def test_a_crash_is_told_where_no_file_can_be_written(step_that, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    step_that(raising(ZeroDivisionError("by nought")))
    assert cli.main(["probe"]) == 1
    said = capsys.readouterr().err
    assert "CRASH  ZeroDivisionError: by nought" in said and "Traceback" in said
    assert "the traceback is above, no file could be written" in said


@pytest.mark.parametrize("words", [["--help"], ["models", "--help"], ["models"]])
def test_a_reader_that_goes_away_is_no_error(words) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "ci.cli", *words], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, text=True
        )
    finally:
        os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_under_the_output_is_one_line() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "ci.cli", "--help"], stdout=full, stderr=subprocess.PIPE, cwd=ROOT, text=True
        )
    assert done.stderr.splitlines() == ["ERROR  No space left on device"]
    assert done.returncode == 4


def test_the_code_of_a_step_is_passed_on(step_that) -> None:
    step_that(lambda: 3)
    assert cli.main(["probe", "--count", "2"]) == 3


def test_an_unknown_option_is_a_mistake(step_that) -> None:
    step_that(lambda: 0)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["probe", "--cuont", "2"])
    assert stopped.value.code == 2


def test_an_unknown_command_is_answered_with_the_nearest(capsys) -> None:
    assert cli.main(["promot"]) == 2
    assert "no command 'promot' (did you mean 'promote'?)" in capsys.readouterr().err


def test_outside_of_a_repository_it_says_so(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status"]) == 2
    assert "is not inside a Modelwharf repository" in capsys.readouterr().err


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command, capsys) -> None:
    importlib.import_module(cli.COMMANDS[command][0])
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: wharf {command}" in capsys.readouterr().out
