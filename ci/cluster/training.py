"""`wharf train MODEL --on cluster`: the same training as a Job, which records the same run in the cluster's MLflow."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ci.cluster import access as found
from ci.cluster import inside, jobs
from ci.cluster.kube import connect
from ci.console import say
from ci.errors import Mistake, Unavailable
from ci.mlflow_api.files import FileStore
from ci.shell import git
from ci.train import Plan, TrainedRun, Value, existing, plan_of
from ci.workspace import Workspace, tracking_uri

if TYPE_CHECKING:
    from ci.cluster.access import Access


def train(
    workspace: Workspace,
    name: str,
    *,
    data: Path | None = None,
    force: bool = False,
    overrides: Mapping[str, Value] | None = None,
) -> TrainedRun:
    """Return the complete run of `name`, trained as a Job unless the same run exists.

    The data is found here, as for a training on this machine, and travels through MLflow by its digest. Raises as
    `ci.train.train`, and Mistake for code that is in no commit, Unavailable and others as `jobs.run_job`.
    """
    access, uri = require_cluster(workspace)
    plan = plan_of(workspace, name, data=data, overrides=overrides)
    require_committed(plan.code.changed)
    fingerprint = plan.fingerprint()
    if not force and (known := existing(plan, fingerprint)):
        return known
    words = ["train", name, *[word for key, value in (overrides or {}).items() for word in ("--set", _set(key, value))]]
    if force:
        words.append("--force")
    fetch: list[tuple[str, str, str]] = []
    if (sent := _send(plan, uri, data is not None)) is not None:
        fetch.append(sent)
        if data is not None:
            words += ["--data", sent[2]]
    work = in_trainer(workspace, access, name, "train", fingerprint, inside.command(words, fetch))
    jobs.run_job(connect(access), work)
    run = existing(plan, fingerprint)
    if run is None:
        raise Unavailable(
            f"the Job {work.name} is done, and MLflow has no run with the fingerprint {fingerprint[:16]}…",
            tip="was MLflow replaced meanwhile? run the same command again",
        )
    return TrainedRun(run.run_id, reused=False, metrics=run.metrics)


def require_cluster(workspace: Workspace) -> tuple[Access, str]:
    """Return the cluster and the address of its MLflow; raises Unavailable without one, Mistake for another MLflow."""
    access = found.require(workspace)
    if "MLFLOW_TRACKING_URI" in os.environ:
        raise Mistake(
            "MLFLOW_TRACKING_URI is set: a Job records in the cluster's own MLflow, and the result would not be found",
            tip="unset it for `--on cluster`",
        )
    return access, tracking_uri(workspace)


def require_committed(changed: tuple[str, ...] | list[str]) -> None:
    """Raise Mistake when there is a change that a Job would not have."""
    if changed:
        raise Mistake(
            [f"{path}: is not committed, and a Job runs committed code only" for path in changed],
            tip="commit first (`git add` and `git commit`), then run this again",
        )


def in_trainer(
    workspace: Workspace, access: Access, name: str, step: str, key: str, command: tuple[str, ...]
) -> jobs.Work:
    """Return the work of a Job with the trainer's image, which holds the code at HEAD.

    `key` says what it does: a training's fingerprint or a batch's key. The same key is the same Job.
    """
    from ci.images import trainer
    from ci.workspace import load_spec

    spec = load_spec(workspace, name)
    return jobs.Work(
        name=jobs.name_of(step, name, key),
        model=name,
        team=spec.team,
        step=step,
        image=trainer.ensure(workspace, access),
        command=command,
        needs=spec.jobs,
        commit=git(workspace.root, "rev-parse", "--verify", "HEAD^{commit}"),
        env={"MLFLOW_TRACKING_URI": jobs.TRACKING_URI, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
        writable=(f"{trainer.CHECKOUT}/.wharf",),
        notes={"key": key},
    )


def _set(name: str, value: Value) -> str:
    return f"{name}={str(value).lower() if isinstance(value, bool) else value}"


def _send(plan: Plan, uri: str, given: bool) -> tuple[str, str, str] | None:
    """Bring the data to MLflow unless the Job has it by itself; return run, digest and path in the Job.

    A downloaded source goes where the Job looks for it first, so that it is the same source with the same digest.
    """
    source, kind = plan.source, plan.spec.data.source.kind
    if source.path is None or (kind == "file" and not given):
        return None  # made by a package, or committed beside the model
    folder = "given" if given else source.digest
    say(f"  {source.path.name} goes to the Job through MLflow, sha256 {source.digest[:16]}…")
    run = FileStore(uri).send(source.path, source.digest)
    return run.id, source.digest, f".wharf/data/{folder}/{source.path.name}"
