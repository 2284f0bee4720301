"""Read the prediction log of a service and join the labels that came later, by request id and row.

The log is `YYYY-MM-DD.jsonl` files of one line a request, appended by the serving processes. A file is read from its
end in blocks, so a window of the newest rows costs the same however long the log is. A line cut by a crash is counted
in `broken` and left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

_BLOCK = 4 << 20
_SLACK_S = 60.0  # several workers append: their lines are in order of time up to a request's duration


@dataclass(frozen=True)
class Schema:
    """Input columns of a table model in schema order; `categories` maps a column to its values (coded by index)."""

    columns: tuple[str, ...]
    categories: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])


@dataclass(frozen=True)
class PredictionLog:
    """A window of the log in order of time; n answered rows (for ranking: users) of r requests."""

    times: NDArray[np.float64]  # [r] seconds since the epoch, of all requests
    status: NDArray[np.int64]  # [r] HTTP status
    ms: NDArray[np.float64]  # [r] duration in milliseconds
    versions: NDArray[np.int64]  # [r] model version that answered
    errors: dict[str, int]  # what the requests that were refused or failed said, and how often
    ids: list[str]  # [r] request ids
    request: NDArray[np.int64]  # [n] index of the row's request
    position: NDArray[np.int64]  # [n] index of the row in its request
    values: NDArray[np.float64]  # [n, d] inputs; NaN is missing, categories are codes, -1 an unknown one; ranking d=0
    users: NDArray[np.int64]  # [n] users of a ranking model, else [0]
    predictions: list[Any]  # [n] class name, number, or list of item ids
    scores: NDArray[np.float64]  # [n] probability or value, NaN where the log has none
    broken: int  # lines that could not be read
    cut: bool  # more rows were in the window than `max_rows`

    @property
    def repeated(self) -> int:
        """Number of answered requests whose id a later answered one has too: labels do not count for them."""
        answered = np.unique(self.request).tolist()
        return len(answered) - len({self.ids[i] for i in answered})

    @property
    def rows(self) -> int:
        """Number of answered rows."""
        return len(self.request)


def read(
    folder: Path,
    schema: Schema | None,
    *,
    since: float | None = None,
    until: float | None = None,
    versions: Sequence[int] | None = None,
    max_rows: int = 100_000,
) -> PredictionLog:
    """Read the newest `max_rows` answered rows (whole requests) in [since, until] from the log in `folder`.

    `schema` is None for a ranking model. `versions` keeps only what these versions answered. A missing folder is an
    empty log.
    """
    found = _Collected()
    known = None if versions is None else set(versions)
    width = None if schema is None else len(schema.columns)
    day = None if since is None else datetime.fromtimestamp(since - _SLACK_S, UTC).strftime("%Y-%m-%d")
    files = [path for path in sorted(folder.glob("*.jsonl"), reverse=True) if day is None or path.stem >= day]
    full = False
    for lines in (block for path in files for block in _blocks(path)):
        newest = None
        for line in reversed(lines):
            try:
                entry = orjson.loads(line)
                when, version, good = float(entry["ts"]), int(entry["version"]), _fits(entry, width)
            except (ValueError, TypeError, KeyError):
                found.broken += 1
                continue
            if not good:
                found.broken += 1
                continue
            newest = when if newest is None else max(newest, when)
            if (since is not None and when < since) or (until is not None and when > until):
                continue
            if known is not None and version not in known:
                continue
            if full:
                found.cut = True
                break
            found.entries.append(entry)
            found.rows += len(entry.get("predictions") or ())
            full = found.rows >= max_rows
        if found.cut or (since is not None and newest is not None and newest < since - _SLACK_S):
            break
    return _assemble(found, schema)


class _Collected:
    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.rows, self.broken, self.cut = 0, 0, False


def _fits(entry: dict[str, Any], width: int | None) -> bool:
    """Tell whether a line is whole: as many predictions as rows, and rows of `width` values."""
    if not isinstance(entry["status"], int) or not isinstance(entry["ms"], int | float) or "id" not in entry:
        return False
    if entry.get("predictions") is None:
        return True
    rows = entry["users"] if width is None else entry["rows"]
    if len(rows) != len(entry["predictions"]) or len(entry.get("scores") or rows) != len(rows):
        return False
    return width is None or all(len(row) == width for row in rows)


def _blocks(path: Path) -> Iterator[list[bytes]]:
    """Yield lists of whole lines of `path`, the last block of the file first."""
    with path.open("rb") as stream:
        end = stream.seek(0, 2)
        rest = b""
        while end > 0:
            begin = max(0, end - _BLOCK)
            stream.seek(begin)
            block = stream.read(end - begin) + rest
            end = begin
            if begin > 0:
                rest, found, block = block.partition(b"\n")
                if not found:
                    continue
            yield [line for line in block.split(b"\n") if line.strip()]


def _assemble(found: _Collected, schema: Schema | None) -> PredictionLog:
    oldest_first = found.entries[::-1]  # of equal times the line that was written later stays the later one
    entries = sorted(oldest_first, key=lambda entry: entry["ts"])
    answered = [(i, entry) for i, entry in enumerate(entries) if entry.get("predictions") is not None]
    sizes = [len(entry["predictions"]) for _, entry in answered]
    request = np.repeat(np.array([i for i, _ in answered], dtype=np.int64), sizes)
    scores: list[float] = []
    if schema is not None:
        for (_, entry), size in zip(answered, sizes, strict=True):
            scores.extend(entry.get("scores") or [float("nan")] * size)
    rows = [row for _, entry in answered for row in entry["rows"]] if schema is not None else []
    users = [user for _, entry in answered for user in entry["users"]] if schema is None else []
    return PredictionLog(
        times=np.array([entry["ts"] for entry in entries], dtype=np.float64),
        status=np.array([entry["status"] for entry in entries], dtype=np.int64),
        ms=np.array([entry["ms"] for entry in entries], dtype=np.float64),
        versions=np.array([entry["version"] for entry in entries], dtype=np.int64),
        errors=dict(Counter(str(entry["error"])[:120] for entry in entries if entry.get("error")).most_common(10)),
        ids=[str(entry["id"]) for entry in entries],
        request=request,
        position=np.array([at for size in sizes for at in range(size)], dtype=np.int64),
        values=_matrix(rows, schema) if schema is not None else np.empty((len(request), 0)),
        users=np.array(users, dtype=np.int64),
        predictions=[value for _, entry in answered for value in entry["predictions"]],
        scores=np.array(scores if schema is not None else [float("nan")] * len(request), dtype=np.float64),
        broken=found.broken,
        cut=found.cut,
    )


def _matrix(rows: list[list[Any]], schema: Schema) -> NDArray[np.float64]:
    """Return `rows` as float64 [n, d]: None is NaN, a category its code, -1 for an unknown one."""
    if not rows:
        return np.empty((0, len(schema.columns)))
    if schema.categories:
        codes = {
            at: _codes(schema.categories[name]) for at, name in enumerate(schema.columns) if name in schema.categories
        }
        rows = [[_coded(codes.get(at), value) for at, value in enumerate(row)] for row in rows]
    try:
        return np.array(rows, dtype=np.float64)
    except (ValueError, TypeError):  # something in there is no number, which the service would have refused: missing
        return np.array(
            [[value if isinstance(value, int | float) else None for value in row] for row in rows], dtype=float
        )


def _codes(values: Sequence[str]) -> dict[str, int]:
    return {value: code for code, value in enumerate(values)}


def _coded(codes: dict[str, int] | None, value: Any) -> Any:
    # The service may log a category by name or by its code; both are what it saw.
    return codes.get(value, -1) if codes is not None and isinstance(value, str) else value


def sizes(folder: Path, ids: set[str]) -> dict[str, int]:
    """Return how many rows were answered in each request of `ids` that is in the log.

    A client may send an id again: the newest answer counts, as in `join`.
    """
    found: dict[str, int] = {}
    newest: dict[str, float] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for lines in _blocks(path):
            for line in lines:
                try:
                    entry = orjson.loads(line)
                    name, when, predictions = str(entry["id"]), float(entry["ts"]), entry.get("predictions")
                except (ValueError, TypeError, KeyError, AttributeError):
                    continue  # `read` counts these
                if predictions is not None and name in ids and when >= newest.get(name, when):
                    found[name], newest[name] = len(predictions), when
    return found


@dataclass(frozen=True)
class Labels:
    """Labels by (request id, row); of a ranking model a row has several, of others the newest counts."""

    by_row: dict[tuple[str, int], list[Any]]
    times: dict[tuple[str, int], float]  # when the newest label of the row came
    broken: int


def read_labels(folder: Path, *, several: bool = False) -> Labels:
    """Read all labels in `folder`; `several` keeps every different label of a row instead of the last one."""
    by_row: dict[tuple[str, int], list[Any]] = {}
    times: dict[tuple[str, int], float] = {}
    broken = 0
    for path in sorted(folder.glob("*.jsonl")):
        for line in path.read_bytes().split(b"\n"):
            if not line.strip():
                continue
            try:
                entry = orjson.loads(line)
                key, label, when = (str(entry["id"]), int(entry["row"])), entry["label"], float(entry["ts"])
            except (ValueError, TypeError, KeyError):
                broken += 1
                continue
            if not several:
                by_row[key] = [label]
            elif label not in by_row.setdefault(key, []):
                by_row[key].append(label)
            times[key] = when
    return Labels(by_row, times, broken)


def join(log: PredictionLog, labels: Labels) -> tuple[NDArray[np.int64], list[list[Any]]]:
    """Return the rows of `log` that have a label, as indices [k], and their labels [k].

    The id of a request comes from its client and need not be unique, a retry has the same: of the answered requests
    with one id the newest counts, so that no label counts twice.
    """
    if not labels.by_row:
        return np.empty(0, dtype=np.int64), []
    requests = log.request.tolist()
    newest = {log.ids[i]: i for i in requests}  # requests are in order of time: the last one stays
    pairs: list[tuple[int, list[Any]]] = []
    for at, (i, position) in enumerate(zip(requests, log.position.tolist(), strict=True)):
        value = labels.by_row.get((log.ids[i], position))
        if value is not None and newest[log.ids[i]] == i:
            pairs.append((at, value))
    return np.array([at for at, _ in pairs], dtype=np.int64), [value for _, value in pairs]
