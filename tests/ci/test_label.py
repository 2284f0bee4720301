"""`wharf label`: what is accepted, what is refused with its line, and that nothing is added twice or in part."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from ci import cli
from ci.errors import Mistake
from ci.label import Added, Given, label, read_file
from ci.live.prediction_log import read_labels
from ci.workspace import Workspace
from tests.ci.live_traffic import entry, healthy, release, write_log


@pytest.fixture
def logged(workspace: Workspace) -> Workspace:
    """Three requests r0, r1, r2 of two rows each."""
    release(workspace)
    write_log(workspace, [entry(i, healthy(2).tolist(), time.time()) for i in range(3)], "2026-11-20")
    return workspace


def add(workspace: Workspace, *given: tuple[str, object, object]) -> Added:
    lines = [Given(name, row, value, f"labels.csv:{at}") for at, (name, row, value) in enumerate(given, start=2)]
    return label(workspace, "tumor", "dev", lines)


def stored(workspace: Workspace) -> dict[tuple[str, int], list[object]]:
    return read_labels(workspace.labels("dev", "tumor")).by_row


def test_labels_are_added_once(logged: Workspace) -> None:
    assert add(logged, ("r0", 0, "benign"), ("r1", "1", "malignant")) == Added(2, 0, 0, 0, 0)
    assert add(logged, ("r0", 0, "benign"), ("r2", 0, "benign")) == Added(1, 0, 1, 0, 0)
    assert stored(logged) == {("r0", 0): ["benign"], ("r1", 1): ["malignant"], ("r2", 0): ["benign"]}


def test_a_corrected_label_replaces_the_old_one(logged: Workspace) -> None:
    add(logged, ("r0", 0, "benign"))
    assert add(logged, ("r0", 0, "malignant")) == Added(0, 1, 0, 0, 0)
    assert stored(logged) == {("r0", 0): ["malignant"]}


def test_the_last_of_repeated_lines_counts(logged: Workspace) -> None:
    assert add(logged, ("r0", 0, "benign"), ("r0", 0, "malignant")) == Added(1, 0, 0, 1, 0)
    assert stored(logged) == {("r0", 0): ["malignant"]}


def test_unknown_requests_are_counted_and_left_out(logged: Workspace) -> None:
    assert add(logged, ("r9", 0, "benign"), ("r0", 0, "benign")) == Added(1, 0, 0, 0, 1)
    assert add(logged, ("r9", 0, "benign")) == Added(0, 0, 0, 0, 1)
    assert len(list(logged.labels("dev", "tumor").iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            ("r0", 0, "malignat"),
            "labels.csv:3: label: 'malignat' is not one of benign, malignant (did you mean 'malignant'?)",
        ),
        (("r0", 2, "benign"), "labels.csv:3: row: request r0 has 2 rows (0 to 1), there is no row 2"),
        (("r0", "first", "benign"), "labels.csv:3: row: must be a whole number from 0, not 'first'"),
        (("r0", -1, "benign"), "labels.csv:3: row: must be a whole number from 0, not -1"),
        (("r0", True, "benign"), "labels.csv:3: row: must be a whole number from 0, not True"),
        (("r0", 0.5, "benign"), "labels.csv:3: row: must be a whole number from 0, not 0.5"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_added(
    logged: Workspace, given: tuple[str, object, object], line: str
) -> None:
    with pytest.raises(Mistake) as caught:
        add(logged, ("r1", 0, "benign"), given)
    assert caught.value.lines == [line]
    assert stored(logged) == {}


def test_many_faults_are_cut(logged: Workspace) -> None:
    with pytest.raises(Mistake) as caught:
        add(logged, *[("r0", 0, "x")] * 50)
    assert len(caught.value.lines) == 21 and caught.value.lines[-1] == "… and 30 faults more"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("l.csv", "id,row,label\nr0,0,benign\nr1,1,malignant\n"),
        ("l.csv", "\ufefflabel,id,row,by\nbenign,r0,0,me\nmalignant,r1,1,me\n"),
        ("l.jsonl", '{"id": "r0", "row": 0, "label": "benign"}\n\n{"id": "r1", "row": 1, "label": "malignant"}\n'),
    ],
)
def test_file_formats(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    found = [(entry.id, int(entry.row), entry.label) for entry in read_file(path)]
    assert found == [("r0", 0, "benign"), ("r1", 1, "malignant")]


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("l.csv", b"id,row,lable\nr0,0,benign\n", "l.csv:1: 'label' is missing (did you mean 'lable'?)"),
        ("l.csv", b"id,row,label\nr0,0\n", "l.csv:2: has not as many values as the header"),
        ("l.csv", b"id,row,label\nr0,0,benign,more\n", "l.csv:2: has not as many values as the header"),
        ("l.jsonl", b'{"id": "r0", "row": 0, "label": "benign"}\n{"id": \n', "l.jsonl:2: not valid JSON"),
        ("l.jsonl", b"[1]\n", "l.jsonl:1: must be an object with id, row and label"),
        ("l.jsonl", b'{"id": "r0", "label": "benign"}\n', "l.jsonl:1: 'row' is missing"),
        ("l.txt", b"", "l.txt: must end in .csv, .jsonl or .ndjson"),
        ("l.csv", b"\xff\xfe", "l.csv: is not UTF-8 text"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: bytes, line: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Mistake) as caught:
        read_file(path)
    assert line in caught.value.lines[0]


def test_command(logged: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(logged.root)
    path = logged.root.parent / "labels.csv"
    path.write_text("id,row,label\nr0,0,benign\nr0,0,malignant\nr7,0,benign\n")
    assert cli.main(["label", "tumor", str(path)]) == 0
    said = capsys.readouterr().out
    assert said == (
        "1 labels added; 1 repeated in the file (the last one counts); "
        "1 left out: no such request in the prediction log\n"
    )
    assert cli.main(["label", "tumor", str(path), "--env", "dev", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"added": 0, "changed": 0, "known": 1, "repeated": 1, "unknown": 1}
    assert cli.main(["label", "tumor", str(path), "--env", "prod"]) == 2
    assert cli.main(["label", "tumor", "none.csv"]) == 2
