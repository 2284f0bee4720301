"""Progress that a person reads and a log can keep."""

from __future__ import annotations

import pytest

from ci.console import step, table


def test_a_step_is_one_plain_line_where_nobody_watches(capsys: pytest.CaptureFixture[str]) -> None:
    with step("train tumor") as shown:
        shown.note = "run 1a2b"
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "  ✓ train tumor  run 1a2b  0.0s\n"


def test_a_step_that_fails_is_crossed_out(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="no"), step("gate tumor"):
        raise ValueError("no")
    assert capsys.readouterr().err.startswith("  ✗ gate tumor")


def test_a_table_is_aligned() -> None:
    assert table(["MODEL", "V"], [["tumor", 3], ["x", 10]]) == "MODEL  V\ntumor  3\nx      10"
