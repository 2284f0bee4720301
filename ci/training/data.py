"""A model's data: find or download the source, load and check the rows, hold a part out, digest them."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ci.console import step
from ci.errors import Mistake, Refusal, Unavailable
from ci.files import sha256_file
from ci.training.model_code import call
from ci.workspace import Workspace
from models import quality

if TYPE_CHECKING:
    from models.spec import ModelSpec

_CONNECT_S, _READ_S = 10.0, 60.0


@dataclass(frozen=True)
class Source:
    """Where the rows come from: `path` is None for builtin data; `digest` is the sha256 of the file."""

    path: Path | None
    digest: str
    origin: str  # the URL or path that a person would recognise, or "builtin"


def resolve(workspace: Workspace, spec: ModelSpec, given: Path | None = None) -> Source:
    """Return the data file of a model: `given`, or what model.yaml names, downloaded once and verified.

    A given file need not match the sha256 of model.yaml: its own is recorded. Raises Mistake for a file that is
    not there, Refusal when a download differs from its sha256, Unavailable without the network.
    """
    if given is not None:
        if not given.is_file():
            raise Mistake(f"--data {given}: no such file")
        return Source(given.resolve(), sha256_file(given), str(given))
    source = spec.data.source
    if source.kind == "builtin":
        return Source(None, hashlib.sha256(b"builtin").hexdigest(), "builtin")
    if source.kind == "file":
        path = workspace.model(spec.name) / str(source.path)
        if not path.is_file():
            raise Mistake(f"models/{spec.name}/model.yaml: data.source.path: no file '{source.path}' there")
        return Source(path, sha256_file(path), str(source.path))
    url, digest = str(source.url), str(source.sha256)
    cached = workspace.state / "data" / digest / url.rsplit("/", 1)[-1]
    if not cached.is_file() or sha256_file(cached) != digest:
        with step(f"download {url}"):
            _download(url, digest, cached, spec.name)
    return Source(cached, digest, url)


def _download(url: str, digest: str, target: Path, name: str) -> None:
    import requests

    target.parent.mkdir(parents=True, exist_ok=True)
    handle, draft_name = tempfile.mkstemp(dir=target.parent, prefix=".download.")
    draft = Path(draft_name)
    try:
        found = hashlib.sha256()
        with os.fdopen(handle, "wb") as file, requests.get(url, stream=True, timeout=(_CONNECT_S, _READ_S)) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_content(1 << 20):
                found.update(chunk)
                file.write(chunk)
        if found.hexdigest() != digest:
            raise Refusal(
                f"models/{name}/model.yaml: data.source.sha256: {url} has {found.hexdigest()}, not {digest}",
                tip="the data changed at its source: look at it before you change the digest in model.yaml",
            )
        draft.replace(target)
    except requests.RequestException as error:
        status = f" (it answered {error.response.status_code})" if error.response is not None else ""
        raise Unavailable(
            f"the data of {name} cannot be downloaded from {url}{status}",
            tip=f"download it elsewhere and give it with `wharf train {name} --data FILE`",
        ) from error
    finally:
        draft.unlink(missing_ok=True)


def load(workspace: Workspace, spec: ModelSpec, source: Source, newer: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return all rows, checked: input columns by schema name, the target, and what else data.py adds.

    `newer` rows (input columns and target; class names or indices) come behind those of the source. Of a ranking model
    each user's newest rating of an item counts, and an earlier one is left out: else a chosen item could be on both
    sides of the split. Raises Mistake with one line for each broken quality rule.
    """
    loaded = call(workspace, spec.name, "data", "load", source.path)
    if not isinstance(loaded, pd.DataFrame):
        raise Mistake(f"models/{spec.name}/data.py: load returned {type(loaded).__name__}, not a DataFrame")
    parts = [loaded] if newer is None or newer.empty else [loaded, newer]
    frame = pd.concat([_indexed_target(spec, part) for part in parts], ignore_index=True)
    if faults := quality.faults(frame, spec):
        raise Mistake(
            [f"{spec.name}: data: {line}" for line in faults],
            tip=f"correct the data, or the rules under `data` in models/{spec.name}/model.yaml",
        )
    return _newest_ratings(frame) if spec.task == "ranking" else frame


def _newest_ratings(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each user and item, the one with the latest timestamp (ties: the last), in the given order."""
    ordered = frame.sort_values("timestamp", kind="stable")
    return ordered.drop_duplicates(["user", "item"], keep="last").sort_index().reset_index(drop=True)


def _indexed_target(spec: ModelSpec, frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` with class names in the target replaced by their index."""
    target, classes = spec.data.target, spec.data.classes
    if not classes or target not in frame or pd.api.types.is_numeric_dtype(frame[target].dtype):
        return frame
    codes = {label: index for index, label in enumerate(classes)}
    values = [codes.get(value, value) if isinstance(value, str) else value for value in frame[target]]
    column = pd.Series(values, index=frame.index, dtype=object).infer_objects()
    return frame.assign(**{target: column})


def encode(spec: ModelSpec, frame: pd.DataFrame) -> pd.DataFrame:
    """Return `frame` as the model sees it: categories as their index, all inputs as the float32 that serving gets.

    The values are kept as float64, so that fitting is exact, but each is one that float32 can hold: what is learned
    and what is served never differ by rounding. Rows of a ranking model are left as they are.
    """
    if spec.task == "ranking":
        return frame
    inputs = matrix(spec, frame).astype(np.float64)
    encoded = pd.DataFrame(inputs, columns=spec.data.names(), index=frame.index)
    others = [name for name in frame if name not in encoded]
    return pd.concat([encoded, frame[others]], axis=1)


def matrix(spec: ModelSpec, frame: pd.DataFrame) -> NDArray[np.float32]:
    """Return the input columns of `frame` as float32 [n, d] in schema order; a missing value is NaN.

    Categories become the index in `values`; one that is not among them is NaN (the quality rules refuse it before).
    """
    columns: list[Any] = []
    for name, column in spec.data.by_name().items():
        if column.type == "category":
            codes = {value: float(index) for index, value in enumerate(column.values or [])}
            columns.append(np.array([codes.get(value, np.nan) for value in frame[name]], dtype=np.float32))
        else:
            columns.append(frame[name].to_numpy(dtype=np.float64, na_value=np.nan).astype(np.float32))
    return np.ascontiguousarray(np.column_stack(columns))


def split(spec: ModelSpec, frame: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the training rows and the held-out rows (about the share `data.holdout`), both in the given order.

    Tables: a row is held out by a hash of its inputs and the seed, so it always falls on the same side, however the
    data grows, and equal rows fall on the same side: while seed, columns and holdout stay the same, no champion has
    seen what its challenger is measured on (the gate checks it: `champion.unseen`).
    Ranking: of each user the latest ratings by timestamp (ties: by item), so that the past predicts the future.

    Raises Mistake when a side is left without rows or training without a class.
    """
    held = _latest(frame, spec.data.holdout) if spec.task == "ranking" else _by_hash(spec, frame)
    train, holdout = frame[~held].reset_index(drop=True), frame[held].reset_index(drop=True)
    where = f"models/{spec.name}/model.yaml: data.holdout: {spec.data.holdout:g}"
    if train.empty or holdout.empty:
        side = "training" if train.empty else "held-out"
        raise Mistake(f"{where} leaves no {side} rows of {len(frame)}")
    for index, label in enumerate(spec.data.classes or []):
        if not (train[spec.data.target] == index).any():
            raise Mistake(f"{where} leaves no training row of class '{label}'")
    return train, holdout


def _by_hash(spec: ModelSpec, frame: pd.DataFrame) -> NDArray[np.bool_]:
    inputs = np.ascontiguousarray(matrix(spec, frame) + np.float32(0))  # -0.0 becomes 0.0
    key = f"{spec.training.seed}".encode()
    numbers = [int.from_bytes(hashlib.blake2b(row.tobytes(), key=key, digest_size=8).digest(), "big") for row in inputs]
    return np.array(numbers, dtype=np.float64) / 2.0**64 < spec.data.holdout


def _latest(frame: pd.DataFrame, share: float) -> NDArray[np.bool_]:
    order = np.lexsort((frame["item"].to_numpy(), frame["timestamp"].to_numpy(), frame["user"].to_numpy()))
    users = frame["user"].to_numpy()[order]
    _, starts, counts = np.unique(users, return_index=True, return_counts=True)
    rank = np.arange(len(users)) - np.repeat(starts, counts)
    first_held = counts - np.floor(counts * share)
    held = np.zeros(len(frame), dtype=bool)
    held[order] = rank >= np.repeat(first_held, counts)
    return held


def digest(frame: pd.DataFrame) -> str:
    """Return the sha256 (64 hex) of the rows: column names and values in order, whatever file they came from."""
    found = hashlib.sha256()
    for name in frame:
        found.update(f"{name}\x1e".encode())
        column = frame[name]
        if pd.api.types.is_numeric_dtype(column.dtype):
            found.update(column.to_numpy(dtype=np.float64, na_value=np.nan).tobytes())
        else:
            found.update("\x1f".join("" if value is None else str(value) for value in column).encode())
    return found.hexdigest()
