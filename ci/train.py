"""`wharf train MODEL`: fit a model on its training rows, export it, and record the run in MLflow.

The whole run is staged under `.wharf/runs/<fingerprint>/` before anything is sent. A command that was killed, or that
found MLflow down, is finished by running it again: what is staged is uploaded, not trained a second time. A run with
the same fingerprint (model files, pipeline code, data, locked environment, parameters, seed) is reused unless
`--force` is given.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import importlib
import json
import math
import shutil
import tempfile
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ci.console import say, step, table
from ci.errors import Mistake, Unavailable, did_you_mean
from ci.files import sha256_bytes, sha256_file
from ci.models import PIPELINE
from ci.shell import CommandFailed, git
from ci.workspace import Workspace, load_spec, tracking_uri

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient
    from pandas import DataFrame

    from bentos.predictors import Predictor
    from ci.gating.scoring import Scored
    from ci.training.data import Source
    from ci.training.tracking import Staged
    from models.spec import ModelSpec

Value = float | int | str | bool
_REFERENCE_ROWS = 10_000
_CODE = Path(__file__).parents[1]  # the code that runs, whatever checkout it works on


@dataclass(frozen=True)
class TrainedRun:
    """A complete MLflow run; `reused`: it was there before this command."""

    run_id: str
    reused: bool
    metrics: dict[str, float]


@dataclass(frozen=True)
class Code:
    """The state of the repository that a run is made from."""

    commit: str
    changed: tuple[str, ...]  # what decides a run and is in no commit as it is
    lock: str

    @property
    def dirty(self) -> bool:
        return bool(self.changed)


@dataclass(frozen=True)
class Plan:
    """All that decides what comes out of one training."""

    workspace: Workspace
    spec: ModelSpec
    source: Source
    newer: DataFrame | None
    params: dict[str, Value]
    code: Code

    def fingerprint(self) -> str:
        """Return 64 hex digits over it; the commit is not in it, the model's files and the code at work are."""
        from ci.training.data import digest

        folder = self.workspace.model(self.spec.name)
        parts = {
            "files": {
                path.relative_to(folder).as_posix(): sha256_file(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and "__pycache__" not in path.parts
            },
            "pipeline": {path: sha256_file(_CODE / path) for path in PIPELINE},
            "source": self.source.digest,
            "newer": digest(self.newer) if self.newer is not None and not self.newer.empty else None,
            "params": self.params,
            "seed": self.spec.training.seed,
            "lock": self.code.lock,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of a directory under models/")
    parser.add_argument("--data", type=Path, metavar="FILE", help="use this file instead of the source in model.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a training parameter")
    parser.add_argument("--force", action="store_true", help="train even when the same run is already there")
    parser.add_argument(
        "--on", choices=["local", "cluster"], default="local", help="train here, or as a Job on the cluster"
    )
    parser.add_argument("--json", action="store_true", help="print the run as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    overrides = parse_overrides(load_spec(workspace, options.model), options.set)
    data, force = options.data, options.force
    if options.on == "cluster":
        from ci.cluster import training

        run = training.train(workspace, options.model, data=data, force=force, overrides=overrides)
        say(f"  run {run.run_id[:8]}{' (already there)' if run.reused else ''}")
    else:
        with step(f"train {options.model}") as shown:
            run = train(workspace, options.model, data=data, force=force, overrides=overrides)
            shown.note = f"run {run.run_id[:8]}{' (already there)' if run.reused else ''}"
    if options.json:
        print(json.dumps({"model": options.model, "run": run.run_id, "reused": run.reused, "metrics": run.metrics}))
    else:
        print(f"run {run.run_id}")
        print(table(["metric", "value"], [[name, f"{value:.4f}"] for name, value in sorted(run.metrics.items())]))
    return 0


def train(
    workspace: Workspace,
    name: str,
    *,
    data: Path | None = None,
    newer: DataFrame | None = None,
    force: bool = False,
    overrides: Mapping[str, Value] | None = None,
) -> TrainedRun:
    """Return the complete MLflow run of model `name`, trained now unless the same run exists.

    `data`: a file instead of the contract's source. `newer`: labelled rows (input columns and target) added to it
    before the split. `overrides`: training parameters, of names and types that the contract declares.

    Raises Mistake (contract, data or model code), Refusal (download or exported artifact differ), Unavailable (no
    network for the data; MLflow down: the run is staged and kept).
    """
    plan = plan_of(workspace, name, data=data, newer=newer, overrides=overrides)
    if plan.code.dirty:
        say(f"  models/{name}, models/*.py, ci or uv.lock has changes in no commit: the gate will refuse this run")
    fingerprint = plan.fingerprint()
    folder = workspace.state / "runs" / fingerprint
    with _alone(folder):
        staged = _staged(folder, plan.code)
        if staged is None:
            if not force and (found := existing(plan, fingerprint)):
                return found
            staged = _stage(plan, fingerprint, folder)
        return _upload(workspace, staged, folder)


def plan_of(
    workspace: Workspace,
    name: str,
    *,
    data: Path | None = None,
    newer: DataFrame | None = None,
    overrides: Mapping[str, Value] | None = None,
) -> Plan:
    """Return what `train` with these arguments would do; it finds and downloads the data, and raises as `train`."""
    from ci.training import data as rows

    spec = load_spec(workspace, name)
    params = {**spec.training.params, **(overrides or {})}
    return Plan(workspace, spec, rows.resolve(workspace, spec, data), newer, params, _code(workspace, name))


def parse_overrides(spec: ModelSpec, words: list[str]) -> dict[str, Value]:
    """Read `NAME=VALUE` words; a value has the type that the contract's parameter has.

    Raises Mistake for an unknown parameter or a value of another type (a whole number is fine for a decimal one).
    """
    values: dict[str, Value] = {}
    faults: list[str] = []
    for word in words:
        name, equals, text = word.partition("=")
        known = spec.training.params
        if not equals:
            faults.append(f"--set {word}: must be NAME=VALUE")
        elif name not in known:
            faults.append(f"--set {name}: {spec.name} has no training parameter '{name}'{did_you_mean(name, known)}")
        else:
            kind = type(known[name])
            try:
                values[name] = _typed(text, kind)
            except ValueError:
                wanted = {"int": "a whole number", "float": "a number", "bool": "true or false"}[kind.__name__]
                faults.append(f"--set {name}: must be {wanted}, not '{text}'")
    if faults:
        raise Mistake(faults, tip=f"parameters: {', '.join(f'{k}={v}' for k, v in spec.training.params.items())}")
    return values


def _typed(text: str, kind: type) -> Value:
    if kind is bool:
        if text.lower() not in {"true", "false"}:
            raise ValueError(text)
        return text.lower() == "true"
    value = kind(text)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(text)
    return value


def _code(workspace: Workspace, name: str) -> Code:
    # What decides a run; a note or another model that is not committed yet does not matter.
    deciding = [f"models/{name}", ":(glob)models/*.py", "ci", "uv.lock"]
    try:
        commit = git(workspace.root, "rev-parse", "--verify", "HEAD^{commit}")
        how = ["--porcelain", "-z", "--untracked-files=all", "--no-renames"]
        listed = git(workspace.root, "status", *how, "--", *deciding)
    except CommandFailed:
        raise Mistake(
            f"{workspace.root} has no git commit: a run must name the code that it is made from",
            tip="run `git init && git add . && git commit` there first",
        ) from None
    lock = workspace.root / "uv.lock"
    changed = tuple(entry[3:] for entry in listed.split("\0") if entry)
    return Code(commit, changed, sha256_file(lock) if lock.is_file() else sha256_bytes(b""))


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Let one process at a time work on a fingerprint; the next one then finds the run that this one made."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.parent.glob(f".{folder.name}.*"):  # of a training that was killed
            shutil.rmtree(left, ignore_errors=True)
        yield


def _staged(folder: Path, code: Code) -> Staged | None:
    """Return the run that an earlier command staged and could not upload."""
    from ci.training.tracking import read_staged

    staged = read_staged(folder)
    if staged is None or _stale(staged.tags, code):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    say(f"  {staged.model} was trained before: uploading {folder}")
    return staged


def _stale(tags: Mapping[str, str], code: Code) -> bool:
    """A run from uncommitted code is not reused once all is committed: its commit does not hold that code."""
    return tags.get("wharf.dirty") == "true" and not code.dirty


def existing(plan: Plan, fingerprint: str) -> TrainedRun | None:
    """Return the complete run with this fingerprint; None when there is none, or when MLflow cannot be asked now."""
    from ci.mlflow_api.store import connect as store_of
    from ci.training.tracking import connect, find, probe, reachable

    try:
        uri = tracking_uri(plan.workspace)
        probe(uri)
        newest = store_of(plan.workspace).newest_run(plan.spec.name)  # quick: mlflow itself is not imported
        if newest and newest.tags.get("wharf.fingerprint") == fingerprint and not _stale(newest.tags, plan.code):
            return TrainedRun(newest.id, reused=True, metrics=dict(newest.metrics))
        client = connect(uri)
        with reachable(uri):
            wanted = f"tags.`wharf.fingerprint` = '{fingerprint}' and tags.`wharf.state` = 'complete'"
            same = find(client, plan.spec.name, wanted)
    except Unavailable:
        return None  # the training goes on, and its upload says what is wrong
    for run in same:
        if not _stale(run.data.tags, plan.code):
            return TrainedRun(run.info.run_id, reused=True, metrics=dict(run.data.metrics))
    return None


def _stage(plan: Plan, fingerprint: str, folder: Path) -> Staged:
    """Train, export and write everything to a draft, which becomes `folder` in one rename."""
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        staged = _fit(plan, fingerprint, draft)
        staged.write(draft)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return staged


def _fit(plan: Plan, fingerprint: str, draft: Path) -> Staged:
    from bentos.predictors import load
    from ci.pages import plots
    from ci.training import data, evaluate, export
    from ci.training.model_code import call
    from ci.training.tracking import Staged, dataset_of

    spec = plan.spec
    started = time.time_ns() // 1_000_000
    frame = data.load(plan.workspace, spec, plan.source, plan.newer)
    rows, holdout = data.split(spec, frame)
    module, _, function = spec.training.entry.partition(":")
    inputs = data.encode(spec, rows)
    with _one_thread():
        fitted = call(plan.workspace, spec.name, module, function, inputs, dict(plan.params), spec.training.seed)

    artifacts = draft / "artifacts"
    model = artifacts / "model"
    artifact = export.export(spec, fitted, model)
    export.check_parity(spec, fitted, model, holdout)
    predictor = load(model)
    held = _scored(spec, predictor, model, holdout, "holdout")
    metrics = _metrics(spec, held, "holdout")
    if spec.task != "ranking":  # its own training ratings are what a recommender leaves out
        metrics |= _metrics(spec, _scored(spec, predictor, model, rows, "train"), "train")
    metrics |= {"train.rows": float(len(rows)), "holdout.rows": float(len(holdout))}
    plots.draw(spec, held.y_true, held.outputs, rows, artifacts / "plots")

    columns = list(dict.fromkeys([*spec.data.names(), spec.data.target]))
    holdout[columns].to_parquet(artifacts / "holdout.parquet", index=False)
    sample = rows if len(rows) <= _REFERENCE_ROWS else rows.sample(_REFERENCE_ROWS, random_state=spec.training.seed)
    evaluate.with_predictions(spec, predictor, fitted, sample[columns]).to_parquet(
        artifacts / "reference.parquet", index=False
    )
    digest = data.digest(frame)
    return Staged(
        id=uuid.uuid4().hex,
        model=spec.name,
        fingerprint=fingerprint,
        started=started,
        ended=time.time_ns() // 1_000_000,
        params={name: str(value) for name, value in plan.params.items()} | {"seed": str(spec.training.seed)},
        metrics=metrics,
        tags=_tags(plan, digest, artifact),
        dataset=dataset_of(spec.name, rows[columns], spec.data.target, digest, plan.source.origin),
    )


@contextmanager
def _one_thread() -> Generator[None]:
    """Compute on one thread: sums are then added in the same order on any number of cores, and give the same bits.

    For small matrices it is also quicker, by far when other work has the cores (digits on two: 4 s instead of 60 s).
    """
    from threadpoolctl import threadpool_limits

    importlib.import_module("scipy.linalg")  # the limit holds for the libraries that are loaded by now
    with threadpool_limits(1):
        yield


def _scored(spec: ModelSpec, predictor: Predictor, folder: Path, frame: DataFrame, side: str) -> Scored:
    """Return what the artifact says of `frame`, as the gate will ask it."""
    from ci.gating.scoring import Unusable, predicted

    try:
        return predicted(predictor, folder, frame, spec)
    except Unusable as error:
        raise Mistake(f"{spec.name}: {side} rows: {error}", tip=f"look at models/{spec.name}/data.py") from error


def _metrics(spec: ModelSpec, scored: Scored, side: str) -> dict[str, float]:
    """Return every metric of the task that is defined on these rows, named `<side>.<metric>`."""
    from models.metrics import compute
    from models.spec import METRICS

    try:
        values = {name: compute(spec.task, name, scored.y_true, scored.outputs) for name in METRICS[spec.task]}
    except ValueError as error:
        raise Mistake(f"{spec.name}: {side} rows: {error}", tip=f"look at models/{spec.name}/train.py") from error
    return {f"{side}.{name}": value for name, value in values.items() if value == value}


def _tags(plan: Plan, digest: str, artifact: str) -> dict[str, str]:
    return {
        "wharf.model": plan.spec.name,
        "wharf.team": plan.spec.team,
        "wharf.owner": plan.spec.owner,
        "wharf.commit": plan.code.commit,
        "wharf.dirty": str(plan.code.dirty).lower(),
        "wharf.data_sha256": digest,
        "wharf.source": plan.source.origin,
        "wharf.source_sha256": plan.source.digest,
        "wharf.lock_sha256": plan.code.lock,
        "wharf.artifact_sha256": artifact,
        "mlflow.source.git.commit": plan.code.commit,
        "mlflow.source.name": f"models/{plan.spec.name}",
        "mlflow.source.type": "PROJECT",
    }


def _upload(workspace: Workspace, staged: Staged, folder: Path) -> TrainedRun:
    """Bring a staged run to MLflow and W&B, then forget the staged copy; keeps it when MLflow is unavailable."""
    from ci.training import tracking, weights_and_biases

    try:
        uri = tracking_uri(workspace)
        client: MlflowClient = tracking.connect(uri)
        run_id = tracking.upload(client, uri, staged, folder, workspace.state / "mlflow" / "artifacts")
        wandb = weights_and_biases.record(staged, folder, workspace.state)
        tracking.complete(client, uri, staged, run_id, wandb=wandb)
    except Unavailable as error:
        raise Unavailable(
            [f"{line}; the trained run is kept in {folder}" for line in error.lines],
            tip=f"run the same command again when MLflow is back: it uploads the run without training ({error.tip})",
        ) from error
    tracking.forget(folder)
    return TrainedRun(run_id, reused=False, metrics=staged.metrics)
