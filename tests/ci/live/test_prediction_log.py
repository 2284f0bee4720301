"""Reading the log: windows, broken lines, versions, categories, and the join with labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ci.live import prediction_log
from ci.live.prediction_log import Schema, join, read, read_labels, sizes

SCHEMA = Schema(("a", "b"))
BEGIN = 1_763_700_000.0  # 2025-11-21 04:40 UTC


def line(number: int, rows: list[list[Any]], **changes: Any) -> dict[str, Any]:
    made = {"ts": BEGIN + number, "id": f"r{number}", "model": "m", "version": 1, "environment": "dev", "status": 200}
    made |= {"ms": 0.5, "rows": rows, "predictions": ["x"] * len(rows), "scores": [0.5] * len(rows)}
    return made | changes


def write(folder: Path, lines: list[dict[str, Any]], day: str = "2025-11-21", tail: str = "") -> None:
    folder.mkdir(exist_ok=True, parents=True)
    with (folder / f"{day}.jsonl").open("a") as file:
        file.write("".join(json.dumps(one) + "\n" for one in lines) + tail)


def test_no_folder_is_an_empty_log(tmp_path: Path) -> None:
    log = read(tmp_path / "none", SCHEMA)
    assert (log.rows, len(log.times), log.values.shape, log.broken, log.cut) == (0, 0, (0, 2), 0, False)


@pytest.mark.parametrize("block", [40, 1000, 4 << 20])
def test_rows_come_in_order_of_time_whatever_the_block(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction_log, "_BLOCK", block)
    write(tmp_path, [line(i, [[i, i + 0.5]] * (1 + i % 3)) for i in range(30)])
    write(tmp_path, [line(i, [[i, None]]) for i in range(30, 40)], day="2025-11-22")
    log = read(tmp_path, SCHEMA)
    assert log.values[:, 0].tolist() == [i for i in range(30) for _ in range(1 + i % 3)] + list(range(30, 40))
    assert np.isnan(log.values[-10:, 1]).all()
    assert [log.ids[i] for i in log.request[:3]] == ["r0", "r1", "r1"]
    assert log.position[:4].tolist() == [0, 0, 1, 0]
    assert np.isclose(log.times, BEGIN + np.arange(40)).all()


def test_the_newest_rows_win_and_the_cut_is_said(tmp_path: Path) -> None:
    write(tmp_path, [line(i, [[i, 0]] * 4) for i in range(100)])
    log = read(tmp_path, SCHEMA, max_rows=10)
    assert log.values[:, 0].tolist() == [97.0] * 4 + [98.0] * 4 + [99.0] * 4
    assert log.cut
    assert not read(tmp_path, SCHEMA, max_rows=400).cut


def test_window_and_version(tmp_path: Path) -> None:
    write(tmp_path, [line(i, [[i, 0]], version=1 + i % 2) for i in range(20)])
    log = read(tmp_path, SCHEMA, since=BEGIN + 5, until=BEGIN + 10, versions=[2])
    assert log.values[:, 0].tolist() == [5.0, 7.0, 9.0]
    assert set(log.versions.tolist()) == {2}


def test_old_files_are_not_opened(tmp_path: Path) -> None:
    (tmp_path / "2020-01-01.jsonl").mkdir()  # reading it would raise
    write(tmp_path, [line(1, [[1, 1]])])
    assert read(tmp_path, SCHEMA, since=BEGIN).rows == 1


def test_broken_lines_are_counted(tmp_path: Path) -> None:
    write(tmp_path, [line(0, [[1, 2]]), line(1, [[1, 2, 3]]), line(2, [[1, 2]], predictions=["x", "y"]), {"ts": 1}])
    write(tmp_path, [line(3, [[5, 6]])], tail='{"ts": 17637, "id": "cut by a cra')
    log = read(tmp_path, SCHEMA)
    assert (log.rows, log.broken) == (2, 4)


def test_a_value_that_is_no_number_is_missing(tmp_path: Path) -> None:
    write(tmp_path, [line(0, [[1, "many"], [2, 3]])])
    assert np.isnan(read(tmp_path, SCHEMA).values[0, 1])


def test_categories_by_name_and_by_code(tmp_path: Path) -> None:
    write(tmp_path, [line(0, [["red", 1], ["blue", 1], [1, 1], ["pink", 1], [None, 1]])])
    found = read(tmp_path, Schema(("a", "b"), {"a": ["red", "blue"]})).values[:, 0]
    assert found[:4].tolist() == [0, 1, 1, -1] and np.isnan(found[4])


def test_refused_requests_have_no_rows(tmp_path: Path) -> None:
    bad = {"ts": BEGIN, "id": "e", "model": "m", "version": 1, "environment": "dev", "status": 422, "ms": 0.1}
    write(tmp_path, [bad | {"error": "rows.0: is missing"}] * 3 + [line(1, [[1, 1]])])
    log = read(tmp_path, SCHEMA)
    assert (log.rows, log.errors, log.status.tolist()) == (1, {"rows.0: is missing": 3}, [422, 422, 422, 200])


def test_ranking_lines(tmp_path: Path) -> None:
    made = {"ts": BEGIN, "id": "r", "model": "m", "version": 1, "environment": "dev", "status": 200, "ms": 1, "k": 2}
    write(tmp_path, [made | {"users": [7, 8], "predictions": [[1, 2], [3, 4]], "scores": [[1.0, 0.5], [1.0, 0.5]]}])
    log = read(tmp_path, None)
    assert (log.users.tolist(), log.predictions, log.rows) == ([7, 8], [[1, 2], [3, 4]], 2)


def test_join_takes_the_last_label(tmp_path: Path) -> None:
    write(tmp_path / "log", [line(i, [[i, 0], [i, 1]]) for i in range(3)])
    given = [("r0", 1, "x"), ("r2", 0, "y"), ("r2", 0, "z"), ("none", 0, "x")]
    lines = [{"ts": i, "id": name, "row": row, "label": label} for i, (name, row, label) in enumerate(given)]
    write(tmp_path / "labels", lines, tail="{broken\n")
    labels = read_labels(tmp_path / "labels")
    rows, found = join(read(tmp_path / "log", SCHEMA), labels)
    assert (rows.tolist(), found, labels.broken) == ([1, 4], [["x"], ["z"]], 1)
    assert labels.times["r2", 0] == 2
    assert read_labels(tmp_path / "labels", several=True).by_row["r2", 0] == ["y", "z"]


@pytest.mark.parametrize("later", [BEGIN + 10, BEGIN])
def test_a_label_counts_once_for_a_request_that_was_sent_again(tmp_path: Path, later: float) -> None:
    write(tmp_path / "log", [line(0, [[1, 1], [2, 2]]), line(0, [[3, 3]], ts=later), line(1, [[4, 4]])])
    refused = {"ts": BEGIN + 20, "id": "r0", "model": "m", "version": 1, "environment": "dev", "status": 503, "ms": 1}
    write(tmp_path / "log", [refused])  # the newest of all, but nothing was answered
    write(tmp_path / "labels", [{"ts": 1, "id": "r0", "row": row, "label": "x"} for row in (0, 1)])
    log = read(tmp_path / "log", SCHEMA)
    rows, found = join(log, read_labels(tmp_path / "labels"))
    assert (log.values[rows, 0].tolist(), found, log.repeated) == ([3.0], [["x"]], 1)
    assert sizes(tmp_path / "log", {"r0"}) == {"r0": 1}


def test_sizes_of_requests(tmp_path: Path) -> None:
    write(tmp_path, [line(i, [[i, 0]] * (i + 1)) for i in range(3)], tail="{broken\n[1]\n")
    assert sizes(tmp_path, {"r2", "r0", "other"}) == {"r0": 1, "r2": 3}
