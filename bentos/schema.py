"""What a serving process knows of its model: `serving.json`, which stands beside the artifact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TASKS = ("binary", "multiclass", "regression", "ranking")
FORMATS = {"onnx": "artifact.onnx", "skops": "artifact.skops", "npz": "artifact.npz"}


class ArtifactError(Exception):
    """The model folder cannot be served: missing, damaged or not what was released. The text is one line."""


@dataclass(frozen=True)
class Column:
    """One input column; `minimum` and `maximum` are what training allowed, and are counted, not enforced."""

    name: str
    type: str  # float | int | category
    minimum: float | None = None
    maximum: float | None = None
    values: tuple[str, ...] | None = None  # of a category column; the model sees the index
    nullable: bool = False  # a missing value is accepted and given to the model as NaN


@dataclass(frozen=True)
class ServingSpec:
    """The content of `serving.json`."""

    model: str
    task: str
    format: str
    file: str
    sha256: str
    columns: tuple[Column, ...]
    classes: tuple[str, ...]
    max_rows: int = 1000
    max_body_kb: int = 1024
    max_concurrency: int = 32
    timeout_s: float = 5.0

    @property
    def names(self) -> tuple[str, ...]:
        """Return the column names in schema order."""
        return tuple(column.name for column in self.columns)


def read(folder: Path) -> ServingSpec:
    """Read `folder/serving.json`; raises ArtifactError when it is missing or does not describe a model."""
    path = folder / "serving.json"
    try:
        raw: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: not valid JSON: {error}") from None
    try:
        return _parse(raw)
    except KeyError as error:
        raise ArtifactError(f"{path}: {error.args[0]}: is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{path}: {error}") from None


def _parse(raw: Mapping[str, Any]) -> ServingSpec:
    spec = ServingSpec(
        model=str(raw["model"]),
        task=str(raw["task"]),
        format=str(raw["format"]),
        file=str(raw["file"]),
        sha256=str(raw["sha256"]),
        columns=tuple(_column(column) for column in raw.get("columns") or ()),
        classes=tuple(str(name) for name in raw.get("classes") or ()),
        max_rows=int(raw.get("max_rows", 1000)),
        max_body_kb=int(raw.get("max_body_kb", 1024)),
        max_concurrency=int(raw.get("max_concurrency", 32)),
        timeout_s=float(raw.get("timeout_s", 5.0)),
    )
    if spec.task not in TASKS:
        raise ValueError(f"task: '{spec.task}' is not one of {', '.join(TASKS)}")
    if spec.format not in FORMATS:
        raise ValueError(f"format: '{spec.format}' is not one of {', '.join(FORMATS)}")
    if Path(spec.file).name != spec.file:
        raise ValueError(f"file: '{spec.file}' must be a name in the same folder")
    if (spec.format == "npz") != (spec.task == "ranking"):
        raise ValueError(f"format: {spec.format} does not serve a {spec.task} model")
    if spec.task != "ranking" and not spec.columns:
        raise ValueError("columns: is empty")
    if spec.task in {"binary", "multiclass"} and len(spec.classes) < 2:
        raise ValueError(f"classes: a {spec.task} model needs at least two")
    return spec


def _column(raw: Mapping[str, Any]) -> Column:
    values = raw.get("values")
    return Column(
        name=str(raw["name"]),
        type=str(raw.get("type", "float")),
        minimum=None if raw.get("min") is None else float(raw["min"]),
        maximum=None if raw.get("max") is None else float(raw["max"]),
        values=None if values is None else tuple(str(value) for value in values),
        nullable=float(raw.get("max_missing") or 0) > 0,
    )
