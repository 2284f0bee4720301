"""Record a staged training run in MLflow, so that a crash at any moment is finished by running the command again.

A staged run is a folder `.wharf/runs/<fingerprint>/` with `run.json` (see `Staged`) and `artifacts/`, complete before
the first byte goes to the server. The MLflow run is found again by its tag `wharf.staged`; the tag
`wharf.state=complete` is set last, and nothing reads a run without it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ci.errors import Unavailable
from ci.files import write_atomic
from ci.workspace import shown_uri

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient
    from pandas import DataFrame

_PROBE_S = (3.05, 10.0)  # connect, read


@dataclass(frozen=True)
class Staged:
    """All that is recorded of a run besides its files."""

    id: str  # of this training, found again in the tag wharf.staged
    model: str
    fingerprint: str
    started: int  # milliseconds since 1970
    ended: int
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    dataset: dict[str, str]  # what mlflow.entities.Dataset takes

    def write(self, folder: Path) -> None:
        write_atomic(folder / "run.json", json.dumps(asdict(self), indent=1, sort_keys=True) + "\n")


def read_staged(folder: Path) -> Staged | None:
    """Return the staged run in `folder`, or None when there is none (it is complete if it is there at all)."""
    try:
        return Staged(**json.loads((folder / "run.json").read_text()))
    except FileNotFoundError:
        return None


def dataset_of(name: str, rows: DataFrame, target: str, digest: str, origin: str) -> dict[str, str]:
    """Return MLflow's description of the training rows: source, schema, size, and the digest of all rows.

    MLflow keeps 36 characters of a digest; the whole one is the tag wharf.data_sha256.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # hints about integer columns, which cannot be missing here
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.pandas_dataset import from_pandas

        source: Any = origin if origin.startswith(("http://", "https://")) else CodeDatasetSource({"origin": origin})
        dataset: Any = from_pandas(rows, source=source, targets=target, name=name, digest=digest[:36])
        described = dataset.to_dict()
    return {key: str(described[key]) for key in ("name", "digest", "source_type", "source", "schema", "profile")}


def probe(uri: str) -> None:
    """Raise Unavailable within seconds when no server answers at an http(s) `uri`."""
    if not uri.startswith(("http://", "https://")):
        return
    import requests

    try:
        status = requests.get(f"{uri.rstrip('/')}/health", timeout=_PROBE_S).status_code
    except requests.RequestException as error:
        raise unavailable(uri, type(error).__name__) from error
    if status >= 500:
        raise unavailable(uri, f"it answered {status}")


def unavailable(uri: str, reason: str) -> Unavailable:
    """Return the error for an MLflow that does not answer."""
    return Unavailable(
        shown_uri(f"MLflow at {uri} is not reachable ({reason})"),  # MLflow's own messages hold the address too
        tip="start it with `make up`, or set MLFLOW_TRACKING_URI",
    )


def connect(uri: str) -> MlflowClient:
    """Return a client of a server that answers now, one that gives up in seconds when it stops answering.

    Raises Unavailable.
    """
    probe(uri)
    # Read by mlflow at each request. A value that the user has set stays.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # standard output is for results
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    from mlflow.tracking import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    with reachable(uri):
        return MlflowClient(tracking_uri=uri)


@contextmanager
def reachable(uri: str) -> Generator[None]:
    """Turn what MLflow raises when it stops answering, or refuses, into Unavailable."""
    import requests
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, ConnectionError) as error:
        reason = str(error).strip().splitlines()
        raise unavailable(uri, (reason[0] if reason else type(error).__name__)[:200]) from error


def find(client: MlflowClient, model: str, condition: str) -> list[Run]:
    """Return the runs of `model` that match the MLflow filter `condition`, newest first."""
    experiment = client.get_experiment_by_name(model)
    if experiment is None:
        return []
    return list(
        client.search_runs(
            [experiment.experiment_id], condition, order_by=["attributes.start_time DESC"], max_results=50
        )
    )


def upload(client: MlflowClient, uri: str, staged: Staged, folder: Path, store: Path) -> str:
    """Bring the staged run in `folder` to MLflow, all but the last tag, and return its run id.

    Continues the run that an interrupted upload left. `store`: where a tracking URI without a server keeps artifacts.
    Raises Unavailable when the server stops answering; `folder` is kept.
    """
    with reachable(uri):
        run = _open_run(client, staged, None if uri.startswith("http") else store)
        if run.data.tags.get("wharf.state") == "complete":
            return run.info.run_id
        _record(client, run.info.run_id, staged)
        client.log_artifacts(run.info.run_id, str(folder / "artifacts"))
    return run.info.run_id


def complete(client: MlflowClient, uri: str, staged: Staged, run_id: str, **tags: str) -> None:
    """Set the last `tags` of a run and mark it as finished: from now on it counts."""
    with reachable(uri):
        for key, value in tags.items():
            client.set_tag(run_id, f"wharf.{key}", value)
        client.set_terminated(run_id, "FINISHED", staged.ended)
        client.set_tag(run_id, "wharf.state", "complete")


def forget(folder: Path) -> None:
    """Remove a staged run that is in MLflow; run.json goes first, so that a half removed one is none."""
    (folder / "run.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _open_run(client: MlflowClient, staged: Staged, store: Path | None) -> Run:
    """Return the run of an earlier upload of this staged run or fingerprint, or a new one."""
    same = find(client, staged.model, f"tags.`wharf.staged` = '{staged.id}'")
    if same:
        return same[0]
    for left in find(client, staged.model, f"tags.`wharf.fingerprint` = '{staged.fingerprint}'"):
        if left.data.tags.get("wharf.state") != "complete":  # its staged folder is lost, its name need not be
            return left
    tags = {
        **staged.tags,
        "wharf.staged": staged.id,
        "wharf.fingerprint": staged.fingerprint,
        "wharf.state": "uploading",
    }
    return client.create_run(
        _experiment(client, staged.model, store),
        start_time=staged.started,
        tags=tags,
        run_name=f"{staged.model}-{staged.fingerprint[:8]}",
    )


def _experiment(client: MlflowClient, name: str, store: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    location = None
    if store is not None:
        store.mkdir(parents=True, exist_ok=True)
        location = (store / name).resolve().as_uri()
    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.create_experiment(name, artifact_location=location)
        except MlflowException:
            found = client.get_experiment_by_name(name)  # another command made it in the meantime
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _record(client: MlflowClient, run_id: str, staged: Staged) -> None:
    """Log what is not a file. Every value has its old timestamp, so that doing it twice changes nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    tags = {**staged.tags, "wharf.staged": staged.id, "wharf.fingerprint": staged.fingerprint}
    metrics = [Metric(name, value, staged.ended, 0) for name, value in staged.metrics.items()]
    client.log_batch(
        run_id,
        metrics=metrics,
        params=[Param(name, value) for name, value in staged.params.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    dataset: Any = Dataset(**staged.dataset)
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
