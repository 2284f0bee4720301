"""The output of a batch: the rows of the input with what the model said, the rejected rows, and the manifest."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from bentos.schema import ServingSpec
from ci.batching import encode
from ci.batching.arrow import DataType, Field, Schema, Table, pc
from ci.batching.predict import Said, added
from ci.batching.source import Input, Part, kind, needed
from ci.errors import Mistake


def names(spec: ServingSpec, prefix: str) -> list[str]:
    """Return the columns that the output has besides those of the input."""
    return [f"{prefix}{name}" for name in [*(name for name, _ in added(spec)), "model", "version"]]


def beside(output: Path, what: str) -> Path:
    """Return the path of a file that belongs to `output`: `rejected.csv` or `json`."""
    return output.with_name(f"{output.name}.{what}")


class Shape:
    """How rows of this input become rows of this output."""

    def __init__(self, source: Input, spec: ServingSpec, output: Path, version: int, prefix: str) -> None:
        self._text_out = kind(output, "--output") == ".csv"
        self._version = version
        self._spec = spec
        # Text stays as it was written where text comes out; in Parquet the model's own columns get their types.
        self._typed: dict[str, str] = {}
        if source.text and not self._text_out:
            kinds = {"user": "int"} if spec.task == "ranking" else {c.name: c.type for c in spec.columns}
            self._typed = {name: kinds[name] for name in needed(spec) if kinds[name] != "category"}
        if self._text_out:
            _require_flat(source)
        fields = [(field.name, self._type(field)) for field in source.schema]
        made = [*added(spec), ("model", pa.string()), ("version", pa.int32())]
        fields += [(f"{prefix}{name}", self._flat(found)) for name, found in made]
        self.schema = pa.schema(fields)

    def _type(self, field: Field) -> DataType:
        if typed := self._typed.get(field.name):
            return pa.int64() if typed == "int" else pa.float64()
        return self._flat(field.type)

    def _flat(self, found: DataType) -> DataType:
        if not self._text_out:
            return found
        if pa.types.is_dictionary(found):
            return found.value_type
        return pa.string() if pa.types.is_list(found) else found

    def rows(self, part: Part, said: Said) -> Table:
        """Return the rows of a part that were not rejected."""
        table, told = part.table, said.table
        if told["reason"].null_count < len(told):
            good = pc.is_null(told["reason"])
            table, told = table.filter(good), told.filter(good)
        columns: list[Any] = [
            encode.typed(values, self._typed[name]) if name in self._typed else values
            for name, values in zip(table.column_names, table.columns, strict=True)
        ]
        columns += [told[name] for name, _ in added(self._spec)]
        columns.append(pa.repeat(pa.scalar(self._spec.model), len(table)))
        columns.append(pa.repeat(pa.scalar(self._version, pa.int32()), len(table)))
        if self._text_out:
            columns = [_as_text(values) for values in columns]
        return pa.Table.from_arrays(columns, schema=self.schema)


def _require_flat(source: Input) -> None:
    nested = [field.name for field in source.schema if pa.types.is_nested(field.type) or _binary(field.type)]
    if nested:
        words = ", ".join(f"'{name}' ({source.schema.field(name).type})" for name in nested)
        raise Mistake(f"{source.path}: {words} cannot be written to CSV", tip="give an --output that ends in .parquet")


def _binary(found: DataType) -> bool:
    return pa.types.is_binary(found) or pa.types.is_large_binary(found) or pa.types.is_fixed_size_binary(found)


def _as_text(values: Any) -> Any:
    """Return a list column as JSON text, a dictionary as its values, everything else as it is."""
    if pa.types.is_dictionary(values.type):
        return values.cast(values.type.value_type)
    if pa.types.is_list(values.type):
        joined = pc.binary_join(values.cast(pa.list_(pa.string())), ",")
        return pc.binary_join_element_wise("[", joined, "]", "")
    return values


class Writer(Protocol):
    """Takes tables of one schema; what is written is whole after `close`."""

    def write_table(self, table: Table) -> None: ...

    def close(self) -> None: ...


def writer(path: Path, schema: Schema, suffix: str) -> Writer:
    """Return a writer of a Parquet or CSV file at `path`."""
    if suffix == ".csv":
        return pyarrow.csv.CSVWriter(path, schema)
    # Numbers that hardly repeat are only slower by way of a dictionary.
    words = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    make: Any = pyarrow.parquet.ParquetWriter  # typed as taking a bool only
    return make(path, schema, use_dictionary=words)


class Rejected:
    """Counts the rejected rows and writes them to a CSV file: row, reason."""

    def __init__(self, file: TextIO) -> None:
        self._csv = csv.writer(file, lineterminator="\n")
        self._csv.writerow(["row", "reason"])
        self.count = 0
        self.first: list[str] = []

    def note(self, part: Part, said: Said) -> None:
        """Note the rejected rows of a part, in the order of the input."""
        told: list[tuple[int, str]] = list(part.broken)
        reasons = said.table["reason"]
        if reasons.null_count < len(reasons):
            words: Sequence[str | None] = reasons.to_pylist()
            told += [(int(part.numbers[i]), word) for i, word in enumerate(words) if word is not None]
            told.sort()
        self._csv.writerows(told)
        self.count += len(told)
        self.first += [f"row {row}: {reason}" for row, reason in told[: 3 - len(self.first)]]
