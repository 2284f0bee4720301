"""The parts of a batch that are done, beside its output: what lets a run that was killed go on where it was.

`.<output>.parts/<key>/000000.arrow`: the key is over everything that decides a prediction, so another input, artifact
or schema never finds these parts. A part that is damaged is not taken for one.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import shutil
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.feather

from bentos.schema import ServingSpec
from ci.batching.arrow import Table
from ci.batching.predict import Said, added
from ci.batching.source import Input, Part
from ci.errors import Mistake
from ci.files import write_atomic

# Raise it with every change of what is predicted for the same rows: older parts are then not taken.
_FORMAT = 1


def key_of(source: Input, sha256: str, spec: ServingSpec, k: int) -> str:
    """Return 64 hex digits over the input, the artifact, its schema, and how the input is cut."""
    facts = {
        "format": _FORMAT,
        "input": sha256,
        "as": source.path.suffix,
        "schema": str(source.schema),
        "part_rows": source.part_rows,
        "spec": asdict(spec),  # with the artifact's digest
        "k": k if spec.task == "ranking" else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Parts:
    """The folder of the parts with one key."""

    folder: Path
    spec: ServingSpec

    def path(self, index: int) -> Path:
        return self.folder / name_of(index)

    def load(self, part: Part) -> Said | None:
        """Return what was said of `part`, None when that is not known."""
        return read(self.path(part.index), len(part.table), self.spec)

    def save(self, index: int, said: Said) -> None:
        """Keep `said`; it is there whole or not at all."""
        write_atomic(self.path(index), content(said))

    def begun(self) -> float:
        """Return when the first run with this key began, seconds since 1970, and note it when this is the first."""
        noted = self.folder / "begun"
        try:
            return float(noted.read_text())
        except (OSError, ValueError):
            now = time.time()
            write_atomic(noted, f"{now}")
            return now


def name_of(index: int) -> str:
    """Return the file name of a part."""
    return f"{index:06d}.arrow"


def content(said: Said) -> bytes:
    """Return the file of a part."""
    sink = io.BytesIO()
    pyarrow.feather.write_feather(said.table, sink, compression="lz4")
    return sink.getvalue()


def read(path: Path, rows: int, spec: ServingSpec) -> Said | None:
    """Return the part in a file, None when it is not there, damaged, or not one of `rows` rows of this task."""
    try:
        table: Table = pyarrow.feather.read_table(io.BytesIO(path.read_bytes()))
        table.validate(full=True)
    except (OSError, pa.ArrowException):
        return None
    wanted = pa.schema([*added(spec), ("reason", pa.string())])
    return Said(table) if len(table) == rows and table.schema.equals(wanted) else None


@contextmanager
def workshop(output: Path) -> Generator[Path]:
    """Give the folder beside `output` where it is made; raises Mistake when another command makes it just now.

    The folder stays unless the block empties it with `clear`.
    """
    if not output.parent.is_dir():
        raise Mistake(f"--output {output}: no folder {output.parent}")
    if output.is_dir():
        raise Mistake(f"--output {output}: is a folder")
    folder = output.parent / f".{output.name}.parts"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Mistake(f"--output {output}: another `wharf batch` is writing it") from None
        yield folder


def clear(folder: Path) -> None:
    """Remove the folder of `workshop`: all of it is in the output."""
    shutil.rmtree(folder)
