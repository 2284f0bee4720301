"""A row of a batch is judged, and seen by the model, as the same row in a request is."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bentos.inputs import Refused
from bentos.predictors import Predictor
from bentos.schema import Column, ServingSpec
from bentos.tables import TableHandler
from ci.batching import encode, source
from ci.batching.source import Part

COLUMNS = (
    Column("a", "float"),
    Column("b", "float", nullable=True),
    Column("n", "int"),
    Column("kind", "category", values=("red", "green", "7")),
    Column("more", "category", values=("x", "y"), nullable=True),
)
SPEC = ServingSpec("m", "binary", "onnx", "artifact.onnx", "0" * 64, COLUMNS, ("no", "yes"))
POOLS: dict[str, list[Any]] = {
    "a": [0.1, -3.0, 1e300, None, 3.4e38, 3.5e38],
    "b": [0.1, 7.25, None],
    "n": [0.0, 3.0, 2.5, 1e17, None],
    "kind": ["red", "green", "7", "gren", "", None],
    "more": ["x", "y", None, "z"],
}
TYPES = {"a": pa.float64(), "b": pa.float64(), "n": pa.float64(), "kind": pa.string(), "more": pa.string()}


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Return rows, about half of them without a fault."""
    chooser = random.Random(seed)
    return [
        {name: chooser.choice(pool if chooser.random() < 0.25 else pool[:2]) for name, pool in POOLS.items()}
        for _ in range(count)
    ]


def served(row: dict[str, Any]) -> list[float] | None:
    """Return what serving makes of a row, None when it refuses it."""
    try:
        return TableHandler(Predictor(SPEC)).read([row]).matrix[0].tolist()
    except Refused:
        return None


def check(table: pa.Table, given: list[dict[str, Any]]) -> None:
    matrix, reasons = encode.matrix(table, COLUMNS)
    good = reasons.good.tolist()
    for i, row in enumerate(given):
        wanted = served(row)
        assert good[i] == (wanted is not None), (row, reasons.by_row().get(i))
        if wanted is not None:
            np.testing.assert_array_equal(matrix[i], np.array(wanted, np.float32))
    assert 0 < sum(good) < len(good)


@pytest.mark.parametrize("seed", range(5))
def test_typed_rows_are_judged_as_in_serving(seed: int) -> None:
    given = rows(200, seed)
    check(pa.table({name: pa.array([row[name] for row in given], kind) for name, kind in TYPES.items()}), given)


@pytest.mark.parametrize("seed", range(5))
def test_rows_of_text_are_judged_as_in_serving(seed: int) -> None:
    given = rows(200, seed)

    def text(value: Any) -> str:
        return "" if value is None else value if isinstance(value, str) else repr(value)

    table = {name: pa.array([text(row[name]) for row in given]) for name in TYPES}
    # An empty field of a CSV file is a missing value: serving is asked with null, where the text was empty.
    check(pa.table(table), [{name: None if value == "" else value for name, value in row.items()} for row in given])


@pytest.mark.parametrize(
    ("written", "number"),
    [
        ("1", 1.0),
        (" 1.5 ", 1.5),
        ("+.5", 0.5),
        ("1e3", 1000.0),
        ("NaN", None),
        ("NA", None),
        ("", None),
        ("null", None),
    ],
)
def test_numbers_may_be_written_so(written: str, number: float | None) -> None:
    column = pa.chunked_array([["bad", written]])
    reasons = encode.Reasons(2)
    found, missing = encode.numbers(column, "a", reasons)
    assert reasons.by_row() == {0: "a: must be a number, not 'bad'"}
    assert missing.tolist() == [False, number is None]
    assert math.isnan(found[1]) if number is None else found[1] == number


@pytest.mark.parametrize("written", ["1_000", "0x10", "1,5", "\uff11", "true", "--1", "1 2"])
def test_numbers_may_not_be_written_so(written: str) -> None:
    reasons = encode.Reasons(1)
    encode.numbers(pa.chunked_array([[written]]), "a", reasons)
    assert reasons.by_row() == {0: f"a: must be a number, not {written!r}"}


@pytest.mark.parametrize(
    "values",
    [
        pa.array([3, 4], pa.int8()),
        pa.array([3, 4], pa.decimal128(10, 2)),
        pa.array([3, 4], pa.float32()),
        pa.array([3, 4], pa.int64()).dictionary_encode(),
    ],
)
def test_every_kind_of_number_is_taken(values: pa.Array) -> None:
    found, missing = encode.numbers(pa.chunked_array([values]), "a", encode.Reasons(2))
    assert found.tolist() == [3.0, 4.0] and not missing.any()


def test_categories_may_be_a_dictionary() -> None:
    kinds = pa.array(["green", "red", None, "blue"]).dictionary_encode()
    table = pa.table({"kind": kinds})
    matrix, reasons = encode.matrix(table, (COLUMNS[3],))
    assert matrix[:2, 0].tolist() == [1.0, 0.0]
    assert reasons.by_row() == {2: "kind: is missing", 3: "kind: must be one of red, green, 7, not 'blue'"}


def test_a_row_has_at_most_three_reasons() -> None:
    columns = tuple(Column(name, "float") for name in "abcde")
    _, reasons = encode.matrix(pa.table({name: ["x"] for name in "abcde"}), columns)
    assert reasons.by_row()[0].count(";") == 2


@pytest.mark.parametrize("values", [pa.array(["9007199254740993", "-1"]), pa.array([9007199254740993, -1])])
def test_user_ids_are_not_rounded(values: pa.Array) -> None:
    found, reasons = encode.users(pa.table({"user": values}))
    assert found.tolist() == [9007199254740993, -1] and reasons.by_row() == {}


def test_user_ids_that_cannot_be() -> None:
    found, reasons = encode.users(pa.table({"user": pa.array([2**64 - 1, 5], pa.uint64())}))
    assert reasons.by_row() == {0: "user: is too large"} and found[1] == 5
    _, reasons = encode.users(pa.table({"user": pa.array([1.0, 1e30, None])}))
    assert reasons.by_row() == {1: "user: must be a whole number, not 1e+30", 2: "user: is missing"}


def parts_of(path: Path, part_rows: int) -> list[Part]:
    schema = pa.schema([("a", pa.string())])
    return list(source.parts(source.Input(path, schema, None, part_rows)))


def test_a_csv_file_is_cut_at_the_same_rows_whatever_its_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "in.csv"
    lines = [f'"row\n{i}"' if i % 3 else f"{i},too,many" for i in range(1, 1001)]
    path.write_text("a\n" + "\n".join(lines) + "\n")
    found = parts_of(path, 100)
    monkeypatch.setattr(source, "_CSV_BLOCK", 200)
    small = parts_of(path, 100)
    assert [part.table.num_rows for part in found] == [*[100] * 6, 67]
    for one, other in zip(found, small, strict=True):
        assert one.table.equals(other.table) and one.broken == other.broken
        assert one.numbers.tolist() == other.numbers.tolist()
    for part in found:
        assert part.table["a"].to_pylist() == [f"row\n{number}" for number in part.numbers.tolist()]
    assert sorted(number for part in found for number, _ in part.broken) == list(range(3, 1001, 3))


def test_the_parts_are_named_by_everything_that_decides_them(tmp_path: Path) -> None:
    from dataclasses import replace

    from ci.batching.parts import key_of

    one = source.Input(tmp_path / "in.csv", pa.schema([("a", pa.string())]), None, 100)
    base = key_of(one, "1" * 64, SPEC, 10)
    assert key_of(one, "1" * 64, SPEC, 20) == base  # k is of ranking models only
    others = [
        key_of(one, "2" * 64, SPEC, 10),
        key_of(replace(one, part_rows=50), "1" * 64, SPEC, 10),
        key_of(replace(one, schema=pa.schema([("b", pa.string())])), "1" * 64, SPEC, 10),
        key_of(one, "1" * 64, replace(SPEC, sha256="3" * 64), 10),
        key_of(one, "1" * 64, replace(SPEC, columns=COLUMNS[:2]), 10),
        key_of(replace(one, path=tmp_path / "in.parquet"), "1" * 64, SPEC, 10),
    ]
    assert len({base, *others}) == 7
