"""The input of a batch: a Parquet or CSV file, read once from the front in parts of a fixed number of rows.

The same file is always cut at the same rows: that is what lets a run that was killed go on. Only a few parts are in
memory at a time. CSV is read as text, so that a value that is no number is one rejected row and not the end of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from numpy.typing import NDArray

from bentos.schema import ServingSpec
from ci.batching.arrow import Batch, DataType, Schema, Table
from ci.errors import Mistake, did_you_mean

SUFFIXES = (".parquet", ".csv")
_MOST_ROWS = 100_000
_MOST_CELLS = 8_000_000  # of a part: 64 MB of numbers
_CSV_BLOCK = 8 << 20


@dataclass(frozen=True)
class Part:
    """Consecutive rows of the input."""

    index: int
    table: Table
    numbers: NDArray[np.int64]  # [rows of table] place of each in the input, from 1
    share: float  # of the input that is read with this part, 0 to 1
    broken: tuple[tuple[int, str], ...] = ()  # rows that could not be read: their place and why

    @property
    def rows(self) -> int:
        return len(self.numbers) + len(self.broken)


@dataclass(frozen=True)
class Input:
    """A file that can be predicted for."""

    path: Path
    schema: Schema
    rows: int | None  # None: a CSV file, where only reading tells
    part_rows: int

    @property
    def text(self) -> bool:
        """Whether every value is read as text."""
        return self.path.suffix == ".csv"


def kind(path: Path, option: str) -> str:
    """Return `.parquet` or `.csv`; raises Mistake for another file, or for an address, naming the option."""
    if "://" in str(path) or (len(path.parts) > 1 and path.parts[0].endswith(":")):
        raise Mistake(f"{option} {path}: an address is not read or written, only a file is", tip="copy it to a file")
    if path.suffix not in SUFFIXES:
        raise Mistake(f"{option} {path}: must end in {' or '.join(SUFFIXES)}")
    return path.suffix


def look(path: Path, wanted: ServingSpec, added: Sequence[str]) -> Input:
    """Return the input at `path`; `added` are the columns that the output will have besides.

    Raises Mistake, one line a fault, when the file cannot be read or its columns do not fit the model.
    """
    kind(path, "--input")
    if not path.is_file():
        raise Mistake(f"--input {path}: no such file")
    schema, rows = _head_of_csv(path) if path.suffix == ".csv" else _head_of_parquet(path)
    faults = _faults(path, schema, wanted, added)
    if faults:
        raise Mistake(faults, tip=f"inputs of {wanted.model}: {', '.join(needed(wanted))}"[:300])
    return Input(path, schema, rows, max(1, min(_MOST_ROWS, _MOST_CELLS // len(schema.names))))


def needed(wanted: ServingSpec) -> tuple[str, ...]:
    """Return the columns that the model must be given."""
    return ("user",) if wanted.task == "ranking" else wanted.names


def _faults(path: Path, schema: Schema, wanted: ServingSpec, added: Sequence[str]) -> list[str]:
    names, inputs = schema.names, needed(wanted)
    faults = [f"{path}: column '{name}' stands there twice" for name, n in Counter(names).items() if n > 1]
    missing = [name for name in inputs if name not in names]
    if missing:
        others = [name for name in names if name not in inputs]
        words = [f"'{name}'{did_you_mean(name, others)}" for name in missing]
        faults.append(f"{path}: lacks the column{'s' if len(words) > 1 else ''} {', '.join(words)}")
    taken = [f"'{name}'" for name in added if name in names]
    if taken:
        faults.append(
            f"{path}: has {', '.join(taken)}, which the output adds: give `--prefix TEXT` to name the added ones apart"
        )
    return faults if faults or path.suffix == ".csv" else _type_faults(path, schema, wanted)


def _type_faults(path: Path, schema: Schema, wanted: ServingSpec) -> list[str]:
    categories = {column.name for column in wanted.columns if column.values is not None}
    faults: list[str] = []
    for name in needed(wanted):
        found: DataType = schema.field(name).type
        if pa.types.is_null(found):
            continue  # every value is missing: the rows say so
        if pa.types.is_dictionary(found):
            found = found.value_type
        if name in categories:
            good, word = pa.types.is_string(found) or pa.types.is_large_string(found), "text"
        else:
            good = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
            word = "numbers"
        if not good:
            faults.append(f"{path}: column '{name}' is {found}, the model takes {word}")
    return faults


def _head_of_parquet(path: Path) -> tuple[Schema, int]:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            return file.schema_arrow, int(file.metadata.num_rows)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None


def _head_of_csv(path: Path) -> tuple[Schema, None]:
    try:
        with _csv(str(path), [], deque()) as reader:
            names: list[str] = reader.schema.names
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from None
    return pa.schema([(name, pa.string()) for name in names]), None


def _unreadable(path: Path, error: Exception) -> Mistake:
    """Return what is wrong with the content of a file; raises `error` again when it is the machine that is at fault."""
    if isinstance(error, OSError) and error.errno:  # pyarrow's own, such as a damaged page, have none
        raise error
    lines = str(error).strip().splitlines()
    return Mistake(f"{path}: cannot be read as {path.suffix[1:]}: {lines[0] if lines else type(error).__name__}")


def _csv(file: Any, names: list[str], broken: deque[tuple[int, str]]) -> Any:
    def note(row: Any) -> str:
        # Numbers count the header too; they are given because nothing reads in parallel.
        broken.append((row.number - 1, f"has {row.actual_columns} values, the header has {row.expected_columns}"))
        return "skip"

    return pyarrow.csv.open_csv(
        file,
        read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK),
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    )


def parts(source: Input) -> Generator[Part]:
    """Read the input from its first row to the last; raises Mistake when it turns out not to be readable."""
    try:
        yield from _csv_parts(source) if source.text else _parquet_parts(source)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(source.path, error) from None


def _parquet_parts(source: Input) -> Generator[Part]:
    # Not buffered ahead by row group: one of a million wide rows would be in memory at once.
    how: dict[str, Any] = {"pre_buffer": False, "buffer_size": 1 << 20, "page_checksum_verification": True}
    with pyarrow.parquet.ParquetFile(source.path, **how) as file:
        begin = 0
        batches = file.iter_batches(batch_size=source.part_rows)
        for index, table in enumerate(_equal(batches, source)):
            numbers = np.arange(begin + 1, begin + len(table) + 1)
            begin += len(table)
            yield Part(index, table, numbers, begin / (source.rows or begin))


def _csv_parts(source: Input) -> Generator[Part]:
    broken: deque[tuple[int, str]] = deque()
    last, index, size = 0, -1, source.path.stat().st_size
    with pa.OSFile(str(source.path)) as file, _csv(file, source.schema.names, broken) as reader:
        for index, table in enumerate(_equal(reader, source)):
            numbers = _numbers(last, len(table), broken)
            last = int(numbers[-1])
            taken = [broken.popleft() for _ in range(sum(number < last for number, _ in broken))]
            yield Part(index, table, numbers, file.tell() / size, tuple(taken))
    if broken:
        yield Part(index + 1, source.schema.empty_table(), np.empty(0, np.int64), 1.0, tuple(broken))


def _numbers(last: int, rows: int, broken: deque[tuple[int, str]]) -> NDArray[np.int64]:
    """Return the places of the next `rows` readable rows behind `last`: the broken ones have places too."""
    skipped = np.array([number for number, _ in broken], np.int64)
    numbers = np.arange(last + 1, last + rows + len(skipped) + 1)
    return numbers[~np.isin(numbers, skipped)][:rows]


def _equal(batches: Any, source: Input) -> Generator[Table]:
    """Cut record batches of any length anew, into tables of `part_rows` rows; the last one may be shorter."""
    held: list[Batch] = []
    rows = 0
    for batch in batches:
        while rows + len(batch) >= source.part_rows:
            cut = source.part_rows - rows
            yield pa.Table.from_batches([*held, batch.slice(0, cut)])
            held, rows, batch = [], 0, batch.slice(cut)
        if len(batch):
            held.append(batch)
            rows += len(batch)
    if held:
        yield pa.Table.from_batches(held)
