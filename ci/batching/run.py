"""Predict for every row of a file, on this machine, in bounded memory, so that it can be killed and run again.

Reading and writing take turns in this thread, predicting goes on beside it; pyarrow, ONNX Runtime and scikit-learn
release Python's lock while they compute.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bentos.predictors import Predictor
from bentos.schema import ServingSpec
from ci.batching import output as out
from ci.batching import parts as done
from ci.batching import source as rows
from ci.batching.predict import Said, predict
from ci.batching.progress import Progress
from ci.console import say as say_line
from ci.errors import Mistake, Refusal, Unavailable
from ci.files import sha256_file, write_atomic

T = TypeVar("T")


@dataclass(frozen=True)
class Settings:
    """What the user decides besides model and input."""

    output: Path
    max_rejected: float = 0.0  # share of the rows, 0 to 1
    prefix: str = ""
    k: int = 10
    workers: int = 1


@dataclass(frozen=True)
class Batch:
    """One batch: everything that decides its output."""

    source: rows.Input
    sha256: str  # of the input
    spec: ServingSpec
    version: int
    settings: Settings

    @property
    def key(self) -> str:
        return done.key_of(self.source, self.sha256, self.spec, self.settings.k)


def usable_cores() -> int:
    """Return on how many cores this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def already(batch: Batch) -> dict[str, Any] | None:
    """Return the manifest of an output that an earlier command completed for the same input, version and settings."""
    output = batch.settings.output
    try:
        manifest = dict(json.loads(out.beside(output, "json").read_bytes()))
        same = (manifest["key"], manifest["prefix"], manifest["version"]) == (
            *(batch.key, batch.settings.prefix, batch.version),
        )
        allowed = manifest["rejected"] <= batch.settings.max_rejected * manifest["rows"]
        whole = same and allowed and sha256_file(output) == manifest["output"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if whole else None


def run(
    batch: Batch,
    predictor: Predictor | None,
    facts: Mapping[str, Any],
    fill: Callable[[done.Parts], None] = lambda _: None,
) -> dict[str, Any]:
    """Write output, rejected rows and manifest, and return the manifest; `facts` are put into it.

    Without a predictor it is `fill` that brings all parts. Raises Mistake when the input is not readable or is being
    written by another command, Refusal when too many rows are rejected or the input changed meanwhile: what was
    predicted by then is kept, and the same command goes on from there.
    """
    output = batch.settings.output
    with done.workshop(output) as folder:
        kept = done.Parts(folder / batch.key[:16], batch.spec)
        kept.folder.mkdir(exist_ok=True)
        begun, before = kept.begun(), batch.source.path.stat()
        fill(kept)
        draft, rejected_draft = folder / "output", folder / "rejected.csv"
        with rejected_draft.open("w", newline="", encoding="utf-8") as file:
            rejected = out.Rejected(file)
            counts = _write(batch, predictor, kept, draft, rejected)
        _require_unchanged(batch, before)
        if rejected.count:
            rejected_draft.replace(out.beside(output, "rejected.csv"))
        if rejected.count > batch.settings.max_rejected * counts["rows"]:
            draft.unlink(missing_ok=True)
            raise _too_many(batch, rejected, counts["rows"])
        manifest = {
            **facts,
            "key": batch.key,
            "input": {"path": str(batch.source.path), "sha256": batch.sha256},
            "output": {"path": str(output), "sha256": _published(draft, output)},
            "prefix": batch.settings.prefix,
            "rows": counts["rows"],
            "predicted": counts["rows"] - rejected.count,
            "rejected": rejected.count,
            "max_rejected": batch.settings.max_rejected,
            "outside": {name[2:]: n for name, n in sorted(counts.items()) if name.startswith("o:")},
            "reused": counts["reused"],
            "started": _utc(begun),
            "ended": _utc(time.time()),
        }
        write_atomic(out.beside(output, "json"), json.dumps(manifest, indent=1) + "\n")
        if not rejected.count:
            out.beside(output, "rejected.csv").unlink(missing_ok=True)  # of an earlier input
        done.clear(folder)
    return manifest


def _published(draft: Path, output: Path) -> str:
    """Give the finished file its name, and return its digest."""
    digest = sha256_file(draft)
    with draft.open("rb") as file:
        os.fsync(file.fileno())
    draft.replace(output)
    return digest


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _require_unchanged(batch: Batch, before: os.stat_result) -> None:
    now = batch.source.path.stat()
    if (before.st_mtime_ns, before.st_size, before.st_ino) != (now.st_mtime_ns, now.st_size, now.st_ino):
        raise Refusal(
            f"{batch.source.path}: was changed while it was read: nobody could say what was predicted",
            tip="run the same command again",
        )


def _too_many(batch: Batch, rejected: out.Rejected, rows: int) -> Refusal:
    allowed = batch.settings.max_rejected
    share = rejected.count / rows
    where = out.beside(batch.settings.output, "rejected.csv")
    more = [f"… and {rejected.count - len(rejected.first):,} more"] if rejected.count > len(rejected.first) else []
    return Refusal(
        [
            f"{rejected.count:,} of {rows:,} rows ({share:.2%}) are rejected, at most {allowed:.2%} may be; "
            f"all of them with reasons: {where}",
            *rejected.first,
            *more,
        ],
        tip=f"correct the rows, or run it again with `--max-rejected {_above(share)}`: what is predicted is kept",
    )


def _above(share: float) -> str:
    """Return the share, rounded up to a readable number."""
    for digits in range(2, 10):
        rounded = round(share + 0.5 * 10**-digits, digits)
        if share <= rounded < 2 * share or rounded >= 1:
            return f"{min(rounded, 1.0):g}"
    return "1"


def _write(
    batch: Batch, predictor: Predictor | None, kept: done.Parts, draft: Path, rejected: out.Rejected
) -> Counter[str]:
    """Write all rows to `draft`; return how many there are, how many were predicted before, and what is outside."""
    settings, counts = batch.settings, Counter[str](rows=0, reused=0)
    shape = out.Shape(batch.source, batch.spec, settings.output, batch.version, settings.prefix)
    progress = Progress(batch.source.rows)
    writer = out.writer(draft, shape.schema, settings.output.suffix)

    def say(part: rows.Part) -> tuple[Said, bool]:
        found = kept.load(part)
        if found is not None:
            return found, predictor is not None  # what another machine predicted just now is not from before
        if predictor is None:
            raise Unavailable(f"part {part.index} of the batch is missing", tip="run the same command again")
        said = predict(predictor, part, settings.k)
        kept.save(part.index, said)
        return said, False

    def take(part: rows.Part, answer: tuple[Said, bool]) -> None:
        said, reused = answer
        rejected.note(part, said)
        # When one rejected row is too many there will be no output, only the list of all of them.
        if settings.max_rejected > 0 or not rejected.count:
            writer.write_table(shape.rows(part, said))
        counts.update({"rows": part.rows, "reused": part.rows if reused else 0})
        counts.update({f"o:{name}": n for name, n in said.outside.items()})
        progress.show(counts["rows"], part.share, counts["reused"])

    try:
        each(batch.source, settings.workers, say, take)
    finally:
        progress.end()
        writer.close()
    say_line(f"  {progress.summary(counts['rows'])}")
    return counts


def each(source: rows.Input, workers: int, say: Callable[[rows.Part], T], take: Callable[[rows.Part, T], None]) -> None:
    """Give every part with `say(part)`, which runs in threads of its own, to `take`, in order."""
    waiting: deque[tuple[rows.Part, Future[T]]] = deque()
    pool = ThreadPoolExecutor(workers, "predict")
    try:
        for part in rows.parts(source):
            waiting.append((part, pool.submit(say, part)))
            if len(waiting) > workers + 1:
                first, future = waiting.popleft()
                take(first, future.result())
        while waiting:
            first, future = waiting.popleft()
            take(first, future.result())
    finally:
        pool.shutdown(cancel_futures=True)


def check(settings: Settings) -> None:
    """Raise Mistake for settings that cannot be."""
    rows.kind(settings.output, "--output")
    if not 0 <= settings.max_rejected <= 1:
        raise Mistake(f"--max-rejected {settings.max_rejected:g}: must be a share from 0 to 1")
    if settings.workers < 1:
        raise Mistake(f"--workers {settings.workers}: must be at least 1")
    if not 1 <= settings.k <= 1000:
        raise Mistake(f"--k {settings.k}: must be from 1 to 1000")
