"""MLflow through its own client: for tracking URIs that are not http(s), and artifact stores outside the server."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from ci.errors import Mistake, Unavailable
from ci.mlflow_api.store import NoArtifact, Run, Store, Version
from ci.workspace import shown_uri

_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND"}


class ClientStore(Store):
    """See `ci.mlflow_api.store.Store`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        with _reachable(uri):
            self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)

    def run(self, run_id: str) -> Run | None:
        try:
            return _run(self._client.get_run(run_id))
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return None
            raise _unavailable(self.uri, error) from error

    def newest_run(self, experiment: str) -> Run | None:
        with _reachable(self.uri):
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                return None
            runs = self._client.search_runs(
                [found.experiment_id],
                filter_string="attributes.status = 'FINISHED' and tags.`wharf.state` = 'complete'",
                order_by=["attributes.start_time DESC"],
                max_results=1,
            )
        return _run(runs[0]) if runs else None

    def set_run_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        with _reachable(self.uri):
            for key, value in tags.items():
                self._client.set_tag(run_id, key, value)

    def read(self, run: Run, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return self._fetch(run, path, Path(folder)).read_bytes()

    def download(self, run: Run, path: str, target: Path) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            return self._fetch(run, path, Path(folder)).replace(target)

    def _fetch(self, run: Run, path: str, folder: Path) -> Path:
        """Download `path` below `folder`; whether it is there is asked first, as each store fails in its own way."""
        parent = path.rpartition("/")[0] or None
        with _reachable(self.uri):
            if path not in {entry.path for entry in self._client.list_artifacts(run.id, parent) or []}:
                raise NoArtifact(f"MLflow at {shown_uri(self.uri)} has no file {path} of run {run.id}")
            return Path(self._client.download_artifacts(run.id, path, str(folder)))

    def write(self, run: Run, path: str, content: bytes) -> None:
        parent, _, name = path.rpartition("/")
        with tempfile.TemporaryDirectory() as folder, _reachable(self.uri):
            file = Path(folder) / name
            file.write_bytes(content)
            self._client.log_artifact(run.id, str(file), parent or None)

    def ensure_model(self, model: str, description: str, tags: Mapping[str, str]) -> None:
        try:
            self._client.create_registered_model(model, dict(tags), description)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise _unavailable(self.uri, error) from error
            with _reachable(self.uri):
                self._client.update_registered_model(model, description)
                for key, value in tags.items():
                    self._client.set_registered_model_tag(model, key, value)

    def newest_number(self, model: str) -> int | None:
        try:
            found = self._client.get_registered_model(model)
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return None
            raise _unavailable(self.uri, error) from error
        return max((int(entry.version) for entry in found.latest_versions or []), default=None)

    def version(self, model: str, number: int) -> Version | None:
        try:
            return _version(self._client.get_model_version(model, str(number)))
        except MlflowException as error:
            if error.error_code in _ABSENT:
                return None
            raise _unavailable(self.uri, error) from error

    def versions_of_run(self, model: str, run_id: str) -> list[Version]:
        with _reachable(self.uri):
            found = self._client.search_model_versions(f"run_id = '{run_id}'")
        return sorted((_version(entry) for entry in found if entry.name == model), key=lambda version: version.number)

    def create_version(self, model: str, run: Run, description: str, tags: Mapping[str, str]) -> Version:
        source = f"{run.artifact_uri.rstrip('/')}/model"
        with _reachable(self.uri):
            return _version(
                self._client.create_model_version(model, source, run.id, dict(tags), description=description)
            )

    def delete_version(self, model: str, number: int) -> None:
        try:
            self._client.delete_model_version(model, str(number))
        except MlflowException as error:
            if error.error_code not in _ABSENT:
                raise _unavailable(self.uri, error) from error

    def set_version_tags(self, model: str, number: int, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            for pause in (0.2, 0.6, 0.0):
                try:
                    self._client.set_model_version_tag(model, str(number), key, value)
                    break
                except MlflowException as error:  # another process set the same tag at the same moment
                    if not pause:
                        raise _unavailable(self.uri, error) from error
                    time.sleep(pause)


@contextmanager
def _reachable(uri: str) -> Generator[None]:
    try:
        yield
    except (MlflowException, OSError) as error:
        raise _unavailable(uri, error) from error


def _unavailable(uri: str, error: Exception) -> Exception:
    line = shown_uri(f"MLflow at {uri}: {(str(error).splitlines() or [type(error).__name__])[0]}")
    if isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE":
        return Mistake(line)
    return Unavailable(line, tip="is MLFLOW_TRACKING_URI right, and is the server reachable?")


def _run(entry: Any) -> Run:
    info, data = entry.info, entry.data
    return Run(
        id=info.run_id,
        status=info.status,
        started=int(info.start_time or 0),
        ended=int(info.end_time) if info.end_time else None,
        artifact_uri=info.artifact_uri,
        tags=dict(data.tags),
        params=dict(data.params),
        metrics=dict(data.metrics),
        datasets=tuple(used.dataset.digest for used in entry.inputs.dataset_inputs) if entry.inputs else (),
    )


def _version(entry: Any) -> Version:
    return Version(entry.name, int(entry.version), entry.run_id or "", dict(entry.tags))
