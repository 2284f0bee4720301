"""The only schema of `model.yaml`: what a model is, what it must reach, and how it is served and watched.

`load(folder)` returns a `ModelSpec` or raises `SpecError` with one line a fault:
`models/tumor/model.yaml: gate.metrics.roc_auc.minn: unknown key (did you mean 'min'?)`.
"""

from __future__ import annotations

import keyword
import math
import re
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import Field, PlainValidator, model_validator

from models.job_settings import Jobs
from models.strict_yaml import SpecError as SpecError
from models.strict_yaml import Strict as Strict
from models.strict_yaml import StrictLoader as StrictLoader
from models.strict_yaml import near, shown
from models.strict_yaml import read as read
from models.strict_yaml import yaml_fault as yaml_fault

Task = Literal["binary", "multiclass", "regression", "ranking"]

# Metrics that the gate knows for each task, and whether more of it is better.
METRICS: dict[str, dict[str, bool]] = {
    "binary": {
        "roc_auc": True,
        "average_precision": True,
        "accuracy": True,
        "precision": True,
        "recall": True,
        "f1": True,
        "log_loss": False,
        "brier": False,
    },
    "multiclass": {"accuracy": True, "f1_macro": True, "recall_min": True, "log_loss": False},
    "regression": {"rmse": False, "mae": False, "r2": True},
    "ranking": {"ndcg_at_10": True, "recall_at_10": True, "ndcg_lift": True, "coverage": True},
}


# Columns that a run's reference.parquet holds besides those of the contract.
RESERVED = frozenset({"prediction", "score"})


# Names that mean something else: of the logs of the local platform, and of the module of this contract.
TAKEN = frozenset({"agent", "mlflow", "spec"})


class Column(Strict):
    """One input column, or `count` columns `name_0 … name_<count-1>` of the same kind."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    type: Literal["float", "int", "category"] = "float"
    count: Annotated[int, Field(ge=2, le=4096)] | None = None
    min: float | None = None
    max: float | None = None
    values: list[str] | None = None
    max_missing: Annotated[float, Field(ge=0, le=1)] = 0.0
    description: str = ""

    @model_validator(mode="after")
    def _possible(self) -> Column:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        if self.type == "category" and not self.values:
            raise ValueError("a category column needs 'values', the list of allowed ones")
        if self.type != "category" and self.values:
            raise ValueError(f"'values' belongs to a category column, this one is {self.type}")
        if self.type == "category" and (self.min is not None or self.max is not None):
            raise ValueError("'min' and 'max' do not apply to a category column")
        if twice := _twice(self.values or []):
            raise ValueError(f"value '{twice}' is listed twice")
        return self

    def names(self) -> list[str]:
        """Return the column names that this entry stands for."""
        return [self.name] if self.count is None else [f"{self.name}_{i}" for i in range(self.count)]


class Source(Strict):
    """Where the data comes from: `builtin` (data.py makes it from a package) or a `url` with its sha256."""

    kind: Literal["builtin", "url", "file"]
    url: str | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    path: str | None = None
    licence: str = ""

    @model_validator(mode="after")
    def _possible(self) -> Source:
        if self.kind == "url" and not (self.url and self.sha256):
            raise ValueError("a url source needs 'url' and 'sha256'")
        if self.url and not self.url.startswith(("https://", "http://")):
            raise ValueError(f"url '{self.url}' must begin with https:// or http://")
        if self.kind == "file" and not self.path:
            raise ValueError("a file source needs 'path', relative to the model directory")
        if self.path and (PurePosixPath(self.path).is_absolute() or ".." in PurePosixPath(self.path).parts):
            raise ValueError(f"path '{self.path}' must be inside the model directory")
        if self.kind == "builtin" and (self.url or self.path or self.sha256):
            raise ValueError("a builtin source has no 'url', 'path' or 'sha256'")
        return self


class Data(Strict):
    """The data a model learns from: source, schema, quality rules and the part held out for the gate."""

    source: Source
    columns: Annotated[list[Column], Field(min_length=1)]
    target: str
    classes: list[str] | None = None
    min_rows: Annotated[int, Field(ge=1)] = 50
    max_duplicates: Annotated[float, Field(ge=0, le=1)] = 1.0
    holdout: Annotated[float, Field(gt=0, lt=0.9)] = 0.25

    @model_validator(mode="after")
    def _possible(self) -> Data:
        if twice := _twice(self.names()):
            raise ValueError(f"column '{twice}' is declared twice")
        for name in RESERVED.intersection([*self.names(), self.target]):
            raise ValueError(f"column '{name}': the name is taken, monitoring writes what was predicted under it")
        return self

    def names(self) -> list[str]:
        """Return all input column names in schema order."""
        return [name for column in self.columns for name in column.names()]

    def by_name(self) -> dict[str, Column]:
        """Return every input column name with its declaration, in schema order."""
        return {name: column for column in self.columns for name in column.names()}


def _parameter(value: object) -> float | int | str | bool:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    if isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"must be a number, text, true or false, not {shown(value)}")


class Training(Strict):
    """How the model is fitted: the function `entry` of train.py gets the training rows, `params` and `seed`."""

    entry: Annotated[str, Field(pattern=r"^[a-z_]+:[a-z_]+$")] = "train:fit"
    params: dict[str, Annotated[float | int | str | bool, PlainValidator(_parameter)]] = Field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0


class AgainstChampion(Strict):
    """The challenger may be worse than the champion by `max_drop`, with this confidence.

    The check passes when the lower bound of the paired-bootstrap interval of the difference (turned so that
    more is better) is at or above -max_drop.
    """

    max_drop: Annotated[float, Field(ge=0)]
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95


class Metric(Strict):
    """Thresholds of one metric on the held-out data."""

    min: float | None = None
    max: float | None = None
    champion: AgainstChampion | None = None

    @model_validator(mode="after")
    def _possible(self) -> Metric:
        if self.min is None and self.max is None and self.champion is None:
            raise ValueError("checks nothing: give 'min', 'max' or 'champion'")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}")
        return self


class Slice(Strict):
    """A threshold for a part of the held-out rows: each value of a category, or quantile bins of a number."""

    column: str
    bins: Annotated[int, Field(ge=2, le=20)] = 3
    metric: str
    min: float | None = None
    max: float | None = None
    min_rows: Annotated[int, Field(ge=1)] = 20

    @model_validator(mode="after")
    def _possible(self) -> Slice:
        if self.min is None and self.max is None:
            raise ValueError("checks nothing: give 'min' or 'max'")
        return self


class Gate(Strict):
    """What a version must pass before it can be registered."""

    metrics: Annotated[dict[str, Metric], Field(min_length=1)]
    slices: list[Slice] = Field(default_factory=list[Slice])
    latency_p99_ms: Annotated[float, Field(gt=0)] = 50.0
    artifact_mb: Annotated[float, Field(gt=0)] = 100.0


class Resources(Strict):
    """Kubernetes quantities for one replica."""

    cpu: Annotated[str, Field(pattern=r"^[0-9]+m?$")] = "250m"
    memory: Annotated[str, Field(pattern=r"^[0-9]+(Mi|Gi)$")] = "768Mi"
    gpu: Annotated[int, Field(ge=0, le=16)] = 0


class NewData(Strict):
    """Retrain when this many labelled rows came since the last training."""

    rows: Annotated[int, Field(ge=1)]


class DriftTrigger(Strict):
    """Retrain when this many features drift at once."""

    features: Annotated[int, Field(ge=1)]


class PerformanceTrigger(Strict):
    """Retrain when `metric`, measured on labelled live traffic, is beyond the bound."""

    metric: str
    min: float | None = None
    max: float | None = None
    min_rows: Annotated[int, Field(ge=1)] = 50

    @model_validator(mode="after")
    def _possible(self) -> PerformanceTrigger:
        if (self.min is None) == (self.max is None):
            raise ValueError("give either 'min' or 'max'")
        return self


class Retraining(Strict):
    """What starts a retraining; each trigger that is set can do it alone."""

    schedule: str | None = None
    new_data: NewData | None = None
    drift: DriftTrigger | None = None
    performance: PerformanceTrigger | None = None

    @model_validator(mode="after")
    def _possible(self) -> Retraining:
        if self.schedule is not None:
            from croniter import croniter  # only here: most readers of a spec never need it

            if len(self.schedule.split()) != 5 or not croniter.is_valid(self.schedule):
                raise ValueError(f"schedule '{self.schedule}' is not a five-field cron line such as '0 3 * * 1'")
        return self


class DriftRule(Strict):
    """When a feature counts as drifted: the effect size `threshold` of `method`."""

    method: Literal["psi", "ks", "chi2"] = "psi"
    threshold: Annotated[float, Field(gt=0)] = 0.25


class Drift(Strict):
    """Drift settings: a default and exceptions by feature."""

    default: DriftRule = DriftRule()
    features: dict[str, DriftRule] = Field(default_factory=dict[str, DriftRule])
    min_rows: Annotated[int, Field(ge=10)] = 200


class Serving(Strict):
    """How one replica serves."""

    artifact: Literal["onnx", "skops", "npz"] = "onnx"
    max_rows: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_body_kb: Annotated[int, Field(ge=1, le=65_536)] = 1024
    max_concurrency: Annotated[int, Field(ge=1, le=1024)] = 32
    timeout_s: Annotated[float, Field(gt=0, le=300)] = 5.0


class ModelSpec(Strict):
    """The contract of one model."""

    name: str
    description: Annotated[str, Field(min_length=1)]
    owner: Annotated[str, Field(min_length=1)]
    team: Annotated[str, Field(pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$", max_length=40)]
    task: Task
    data: Data
    training: Training = Training()
    gate: Gate
    resources: Resources = Resources()
    jobs: Jobs = Jobs()
    retraining: Retraining = Retraining()
    drift: Drift = Drift()
    serving: Serving = Serving()

    @model_validator(mode="after")
    def _possible(self) -> ModelSpec:
        faults = [*_name_faults(self.name), *_data_faults(self), *_metric_faults(self), *_drift_faults(self)]
        if (self.serving.artifact == "npz") != (self.task == "ranking"):
            fitting = "npz" if self.task == "ranking" else "onnx or skops"
            faults.append(
                f"serving.artifact: {self.serving.artifact} does not serve a {self.task} model, {fitting} does"
            )
        if faults:
            raise ValueError("\n".join(faults))
        return self


def _name_faults(name: str) -> list[str]:
    if not re.fullmatch(r"[a-z][a-z0-9]{0,39}", name) or keyword.iskeyword(name):
        return [
            f"name: '{name}' must be a Python identifier and a DNS label at once: "
            "1 to 40 lower-case letters and digits, starting with a letter, no Python keyword"
        ]
    if name in TAKEN:
        return [f"name: '{name}' is the name of a part of the platform; choose another"]
    return []


def _data_faults(spec: ModelSpec) -> list[str]:
    data, faults = spec.data, []
    if spec.task in {"binary", "multiclass"}:
        if not data.classes:
            faults.append(f"data.classes: a {spec.task} model needs the list of its classes")
        elif spec.task == "binary" and len(data.classes) != 2:
            faults.append(f"data.classes: a binary model has two classes, {len(data.classes)} are listed")
        elif len(set(data.classes)) != len(data.classes):
            faults.append("data.classes: a class is listed twice")
    elif data.classes:
        faults.append(f"data.classes: a {spec.task} model has no classes")
    if spec.task != "ranking" and data.target in data.names():
        faults.append(f"data.target: '{data.target}' is also an input column: the model would see its answer")
    if spec.task == "ranking":
        missing = [name for name in ("user", "item", "rating", "timestamp") if name not in data.names()]
        if missing:
            faults.append(f"data.columns: a ranking model needs the column '{missing[0]}'")
        if data.target != "rating":
            faults.append(f"data.target: of a ranking model must be 'rating', not '{data.target}'")
    return faults


def _metric_faults(spec: ModelSpec) -> list[str]:
    known, faults = METRICS[spec.task], []
    used = [(f"gate.metrics.{name}", name) for name in spec.gate.metrics]
    used += [(f"gate.slices.{i}.metric", part.metric) for i, part in enumerate(spec.gate.slices)]
    if spec.retraining.performance:
        used.append(("retraining.performance.metric", spec.retraining.performance.metric))
    for path, metric in used:
        if metric not in known:
            faults.append(f"{path}: a {spec.task} model has no metric '{metric}'{near(metric, known)}")
    for path, more_is_better, bound in _bounds(spec):
        if more_is_better and bound.max is not None and bound.min is None:
            faults.append(f"{path}: more of it is better, so 'max' alone would pass the worst: give 'min'")
        elif not more_is_better and bound.min is not None and bound.max is None:
            faults.append(f"{path}: less of it is better, so 'min' alone would pass the worst: give 'max'")
    for i, part in enumerate(spec.gate.slices):
        if part.column not in spec.data.names():
            faults.append(f"gate.slices.{i}.column: no column '{part.column}'{near(part.column, spec.data.names())}")
    return faults


def _bounds(spec: ModelSpec) -> list[tuple[str, bool, Metric | Slice | PerformanceTrigger]]:
    """Return every place with a bound on a known metric: its path, whether more is better, and the bound."""
    places: list[tuple[str, str, Metric | Slice | PerformanceTrigger]] = [
        (f"gate.metrics.{name}", name, metric) for name, metric in spec.gate.metrics.items()
    ]
    places += [(f"gate.slices.{i}", part.metric, part) for i, part in enumerate(spec.gate.slices)]
    if spec.retraining.performance:
        places.append(("retraining.performance", spec.retraining.performance.metric, spec.retraining.performance))
    known = METRICS[spec.task]
    return [(path, known[name], bound) for path, name, bound in places if name in known]


def _twice(words: list[str]) -> str | None:
    """Return the first of `words` that stands there more than once."""
    return next((word for i, word in enumerate(words) if word in words[:i]), None)


def _drift_faults(spec: ModelSpec) -> list[str]:
    columns, faults = spec.data.by_name(), list[str]()
    trigger = spec.retraining.drift
    if trigger and trigger.features > len(columns):
        faults.append(
            f"retraining.drift.features: {trigger.features} can never drift, the model has {len(columns)} columns"
        )
    for name, rule in spec.drift.features.items():
        if name not in columns:
            faults.append(f"drift.features.{name}: no such column{near(name, list(columns))}")
        elif (rule.method == "chi2") != (columns[name].type == "category") and rule.method != "psi":
            faults.append(f"drift.features.{name}.method: {rule.method} does not apply to a {columns[name].type}")
    return faults


def load(folder: Path) -> ModelSpec:
    """Read `folder/model.yaml`; raises SpecError with one line a fault."""
    where = f"models/{folder.name}/model.yaml"
    try:
        text = (folder / "model.yaml").read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SpecError([f"{where}: is not UTF-8 text"]) from None
    except OSError as error:
        raise SpecError([f"{where}: cannot be read: {error.strerror}"]) from None
    return parse(text, where, folder.name)


def parse(text: str, where: str, folder: str) -> ModelSpec:
    """Read the text of a `model.yaml` named `where` in error lines; `folder` must equal its name.

    Raises SpecError with one line a fault.
    """
    spec = read(text, where, ModelSpec)
    if spec.name != folder:
        raise SpecError(
            [f"{where}: name: '{spec.name}' differs from its directory '{folder}'; one name finds everything"]
        )
    return spec
