"""What a Job does around its work: fetch, and not give up while MLflow is away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ci.cluster import inside
from ci.errors import Mistake, Unavailable


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "_PAUSE_S", 0.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow")


def works(monkeypatch: pytest.MonkeyPatch, *codes: int) -> list[list[str]]:
    left, seen = list(codes), list[list[str]]()

    def run(words: list[str]) -> int:
        seen.append(words)
        return left.pop(0)

    monkeypatch.setattr("ci.cli.main", run)
    return seen


def test_the_command_is_the_one_that_is_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    received: list[Any] = []
    monkeypatch.setattr(inside.FileStore, "receive", lambda _, *words: received.append(words))
    seen = works(monkeypatch, 0)
    made = inside.command(["train", "tumor", "--set", "C=0.1"], [("r" * 32, "d" * 64, str(tmp_path / "x"))])
    assert made[:3] == ("python", "-m", "ci.cluster.inside")
    assert inside.main(list(made[3:])) == 0
    assert seen == [["train", "tumor", "--set", "C=0.1"]]
    assert received == [("r" * 32, "d" * 64, tmp_path / "x")]


def test_it_tries_again_while_mlflow_is_away_and_only_then(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = works(monkeypatch, 4, 4, 3)
    assert inside.main(["--", "train", "tumor"]) == 3
    assert len(seen) == 3
    monkeypatch.setattr(inside, "_PATIENCE_S", -1.0)
    works(monkeypatch, 4, 0)
    assert inside.main(["--", "train", "tumor"]) == 4


def test_a_file_that_cannot_be_fetched_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faults: list[Exception] = [Unavailable("MLflow does not answer"), Mistake("no such run")]

    def receive(*_: object) -> None:
        raise faults.pop(0)

    monkeypatch.setattr(inside.FileStore, "receive", receive)
    seen = works(monkeypatch)
    assert inside.main(["--fetch", "r", "d", str(tmp_path / "x"), "--", "train", "tumor"]) == 2
    assert "ERROR  MLflow does not answer" in (said := capsys.readouterr().err) and "ERROR  no such run" in said
    assert seen == []
