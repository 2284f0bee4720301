"""`wharf label MODEL FILE`: add the labels that came later to the prediction log, by request id and row.

FILE is CSV with the header `id,row,label` or JSON lines of objects with these keys. A label is a class name, a number,
or, of a ranking model, the id of an item that the user chose.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ci.console import step
from ci.errors import Mistake, did_you_mean
from ci.files import write_atomic
from ci.workspace import Workspace, load_spec

if TYPE_CHECKING:
    from models.spec import ModelSpec

_SHOWN = 20  # faults that are listed; a file with more of them is wrong as a whole


@dataclass(frozen=True)
class Given:
    """One label as it was given; `where` names its line for error messages."""

    id: str
    row: Any
    label: Any
    where: str


@dataclass(frozen=True)
class Added:
    """What became of the labels: every given one is counted in exactly one field."""

    added: int
    changed: int  # the row had another label before; the new one counts
    known: int  # the row had this label already
    repeated: int  # a later line of the same file labels the same row; the last one counts
    unknown: int  # no such request in the prediction log; left out


def label(workspace: Workspace, name: str, environment: str, given: Iterable[Given]) -> Added:
    """Check `given` against the contract and the prediction log, and add what is new as one file, in one rename.

    Raises Mistake, one line a fault and nothing written, for a label that the contract does not allow or a row that
    its request did not have.
    """
    from ci.live.prediction_log import read_labels, sizes

    spec = load_spec(workspace, name)
    rows, several = list(given), spec.task == "ranking"
    requests = sizes(workspace.predictions(environment, name), {entry.id for entry in rows})
    wanted: dict[tuple[Any, ...], Any] = {}
    faults: list[str] = []
    unknown = repeated = 0
    for entry in rows:
        value, fault = _checked(spec, entry, requests.get(entry.id))
        if fault:
            faults.append(f"{entry.where}: {fault}")
        elif entry.id not in requests:
            unknown += 1
        else:
            key = (entry.id, int(entry.row), value) if several else (entry.id, int(entry.row))
            repeated += key in wanted
            wanted[key] = value
    if faults:
        more = [f"… and {len(faults) - _SHOWN} faults more"] if len(faults) > _SHOWN else []
        raise Mistake([*faults[:_SHOWN], *more], tip="nothing was added; correct the file and run this again")
    folder = workspace.labels(environment, name)
    before = read_labels(folder, several=several).by_row
    fresh: list[str] = []
    changed = known = 0
    now = time.time()
    for key, value in wanted.items():
        old = before.get((key[0], key[1]), [])
        if value in old:
            known += 1
            continue
        changed += bool(old) and not several
        fresh.append(json.dumps({"ts": now, "id": key[0], "row": key[1], "label": value}))
    if fresh:
        # A file of its own for each call: complete or absent, and its name sorts by time.
        stamp = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H%M%S.%f")
        write_atomic(folder / f"{stamp}-{secrets.token_hex(4)}.jsonl", "\n".join(fresh) + "\n")
    return Added(len(fresh) - changed, changed, known, repeated, unknown)


def _checked(spec: ModelSpec, entry: Given, size: int | None) -> tuple[Any, str]:
    """Return the label as it is stored and an empty string, or what is wrong with the entry."""
    try:
        row = int(entry.row)
        if isinstance(entry.row, bool | float) or row < 0:
            raise ValueError
    except (TypeError, ValueError):
        return None, f"row: must be a whole number from 0, not {entry.row!r}"
    if size is not None and row >= size:
        return None, f"row: request {entry.id} has {size} rows (0 to {size - 1}), there is no row {row}"
    if spec.data.classes is not None:
        name = str(entry.label)
        if name not in spec.data.classes:
            near = did_you_mean(name, spec.data.classes)
            return None, f"label: '{name}' is not one of {', '.join(spec.data.classes)}{near}"
        return name, ""
    try:
        if isinstance(entry.label, bool):
            raise ValueError
        number = float(entry.label)
        if not math.isfinite(number) or (spec.task == "ranking" and number != int(number)):
            raise ValueError
    except (TypeError, ValueError):
        return None, f"label: must be {'an item id' if spec.task == 'ranking' else 'a number'}, not {entry.label!r}"
    return (int(number) if spec.task == "ranking" else number), ""


def read_file(path: Path) -> list[Given]:
    """Read CSV (`.csv`) or JSON lines (`.jsonl`, `.ndjson`); raises Mistake with file and line for what is neither."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise Mistake(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Mistake(f"{path}: is not UTF-8 text") from None
    if path.suffix == ".csv":
        return _read_csv(path, text)
    if path.suffix in {".jsonl", ".ndjson"}:
        return _read_jsonl(path, text)
    raise Mistake(
        f"{path}: must end in .csv, .jsonl or .ndjson", tip="CSV with the header id,row,label is the simplest"
    )


def _read_csv(path: Path, text: str) -> list[Given]:
    reader = csv.DictReader(text.splitlines())
    _has_keys(f"{path}:1", reader.fieldnames or [])
    found: list[Given] = []
    for entry in reader:
        where = f"{path}:{reader.line_num}"
        if entry.get("label") is None or None in entry:
            raise Mistake(f"{where}: has not as many values as the header")
        found.append(Given(str(entry["id"]), entry["row"], entry["label"], where))
    return found


def _read_jsonl(path: Path, text: str) -> list[Given]:
    found: list[Given] = []
    for number, line in enumerate(text.splitlines(), start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            entry: Any = json.loads(line)
        except ValueError as error:
            raise Mistake(f"{where}: not valid JSON: {error}") from None
        if not isinstance(entry, dict):
            raise Mistake(f"{where}: must be an object with id, row and label")
        _has_keys(where, list(entry))
        found.append(Given(str(entry["id"]), entry["row"], entry["label"], where))
    return found


def _has_keys(where: str, keys: Sequence[str]) -> None:
    for key in ("id", "row", "label"):
        if key not in keys:
            raise Mistake(f"{where}: '{key}' is missing{did_you_mean(key, keys)}")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `wharf label`."""
    parser.add_argument("model", help="name of the model")
    parser.add_argument("file", type=Path, help="CSV with the header id,row,label, or JSON lines with these keys")
    parser.add_argument("--env", metavar="ENV", help="environment (default: the most advanced one with a release)")
    parser.add_argument("--json", action="store_true", help="print the counts as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    """Add the labels of a file and say what became of each."""
    from ci.monitor import released

    workspace.model(options.model)
    release, _ = released(workspace, options.model, options.env)
    given = read_file(options.file)
    with step(f"label {options.model} in {release.environment}"):
        found = label(workspace, options.model, release.environment, given)
    if options.json:
        print(json.dumps(asdict(found)))
        return 0
    parts = [
        f"{found.added} labels added",
        f"{found.changed} changed" if found.changed else "",
        f"{found.known} were there already" if found.known else "",
        f"{found.repeated} repeated in the file (the last one counts)" if found.repeated else "",
        f"{found.unknown} left out: no such request in the prediction log" if found.unknown else "",
    ]
    print("; ".join(part for part in parts if part))
    return 0
