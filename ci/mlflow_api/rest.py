"""MLflow over its REST API (https://mlflow.org/docs/latest/api_reference/rest-api.html), without importing mlflow.

Run artifacts are read and written through the server's artifact proxy, which `mlflow server` offers unless
started with `--no-serve-artifacts`; a run whose artifacts lie elsewhere (s3:, file:) goes through MLflow's client.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.auth import AuthBase

from ci.errors import Mistake, Unavailable
from ci.mlflow_api.store import NoArtifact, Run, Store, Version
from ci.workspace import shown_uri

_CONNECT_S = 3.05
_READ_S = 20.0
_TRANSFER_S = 120.0
_AGAIN = {429, 500, 502, 503, 504}  # a locked SQLite file and a busy proxy answer so; all but creation may be repeated
# Two that set the same tag at once: the database lets one insert, and MLflow tells the other its raw error as a 400.
_COLLISION = re.compile(r"\((sqlite3|psycopg2?|pymysql|MySQLdb|pyodbc)\b[\w.]*\)")
_PROXY = "/api/2.0/mlflow-artifacts/artifacts"


class NotThere(Exception):
    """MLflow says RESOURCE_DOES_NOT_EXIST."""


class AlreadyThere(Exception):
    """MLflow says RESOURCE_ALREADY_EXISTS."""


class _Token(AuthBase):
    """Bearer token; as an auth object so that a ~/.netrc does not replace it."""

    def __init__(self, token: str) -> None:
        self.token = token

    def __call__(self, r: requests.PreparedRequest) -> requests.PreparedRequest:
        r.headers["Authorization"] = f"Bearer {self.token}"
        return r


def _session() -> requests.Session:
    """Return a session with the credentials that MLflow's own client would take from the environment."""
    session = requests.Session()
    user, word = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        session.auth = _Token(token)
    elif user and word:
        session.auth = (user, word)
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in {"true", "1"}:
        session.verify = False
    elif bundle := os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"):
        session.verify = bundle
    if certificate := os.environ.get("MLFLOW_TRACKING_CLIENT_CERT_PATH"):
        session.cert = certificate
    return session


class RestStore(Store):
    """See `ci.mlflow_api.store.Store`."""

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")
        self._session = _session()

    def run(self, run_id: str) -> Run | None:
        try:
            return _run(self._call("GET", "runs/get", run_id=run_id)["run"])
        except NotThere:
            return None

    def newest_run(self, experiment: str) -> Run | None:
        try:
            found = self._call("GET", "experiments/get-by-name", experiment_name=experiment)
        except NotThere:
            return None
        answer = self._call(
            "POST",
            "runs/search",
            experiment_ids=[found["experiment"]["experiment_id"]],
            filter="attributes.status = 'FINISHED' and tags.`wharf.state` = 'complete'",
            order_by=["attributes.start_time DESC"],
            max_results=1,
        )
        runs = answer.get("runs", [])
        return _run(runs[0]) if runs else None

    def set_run_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            self._call("POST", "runs/set-tag", run_id=run_id, key=key, value=value)

    def read(self, run: Run, path: str) -> bytes:
        url = self._artifact_url(run, path)
        if url is None:
            return self._other().read(run, path)
        return self._send("GET", url, where=f"{path} of run {run.id}", timeout=_TRANSFER_S).content

    def download(self, run: Run, path: str, target: Path) -> Path:
        url = self._artifact_url(run, path)
        if url is None:
            return self._other().download(run, path, target)
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            self._send("GET", url, where=f"{path} of run {run.id}", timeout=_TRANSFER_S, stream=True) as answer,
            _reachable(self.uri),
            target.open("wb") as file,
        ):
            for chunk in answer.iter_content(1 << 20):
                file.write(chunk)
        return target

    def write(self, run: Run, path: str, content: bytes) -> None:
        url = self._artifact_url(run, path)
        if url is None:
            self._other().write(run, path, content)
        else:
            headers = {"Content-Type": "application/octet-stream"}
            self._send("PUT", url, where=path, data=content, headers=headers, timeout=_TRANSFER_S)

    def ensure_model(self, model: str, description: str, tags: Mapping[str, str]) -> None:
        try:
            there = self._call("GET", "registered-models/get", name=model)["registered_model"]
        except NotThere:
            entries = [{"key": key, "value": value} for key, value in tags.items()]
            try:
                self._call("POST", "registered-models/create", name=model, description=description, tags=entries)
                return
            except AlreadyThere:  # somebody was faster
                there = self._call("GET", "registered-models/get", name=model)["registered_model"]
        if there.get("description", "") != description:
            self._call("PATCH", "registered-models/update", name=model, description=description)
        known = _tags(there)
        for key, value in tags.items():
            if known.get(key) != value:
                self._call("POST", "registered-models/set-tag", name=model, key=key, value=value)

    def newest_number(self, model: str) -> int | None:
        try:
            found = self._call("GET", "registered-models/get", name=model)["registered_model"]
        except NotThere:
            return None
        return max((int(entry["version"]) for entry in found.get("latest_versions", [])), default=None)

    def version(self, model: str, number: int) -> Version | None:
        try:
            return _version(self._call("GET", "model-versions/get", name=model, version=str(number))["model_version"])
        except NotThere:
            return None

    def versions_of_run(self, model: str, run_id: str) -> list[Version]:
        found: list[Version] = []
        page: str | None = None
        while page is None or page:
            more = {"page_token": page} if page else {}
            answer = self._call("GET", "model-versions/search", filter=f"run_id = '{run_id}'", max_results=200, **more)
            found += [_version(entry) for entry in answer.get("model_versions", []) if entry["name"] == model]
            page = str(answer.get("next_page_token", ""))
        return sorted(found, key=lambda version: version.number)

    def create_version(self, model: str, run: Run, description: str, tags: Mapping[str, str]) -> Version:
        body = {
            "name": model,
            "source": f"{run.artifact_uri.rstrip('/')}/model",
            "run_id": run.id,
            "description": description,
            "tags": [{"key": key, "value": value} for key, value in tags.items()],
        }
        return _version(self._call("POST", "model-versions/create", **body)["model_version"])

    def delete_version(self, model: str, number: int) -> None:
        try:
            self._call("DELETE", "model-versions/delete", name=model, version=str(number))
        except NotThere:
            return

    def set_version_tags(self, model: str, number: int, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            body = {"name": model, "version": str(number), "key": key, "value": value}
            self._call("POST", "model-versions/set-tag", **body)

    def _other(self) -> Store:
        from ci.mlflow_api.client import ClientStore  # imports mlflow: seconds

        return ClientStore(self.uri)

    def _artifact_url(self, run: Run, path: str) -> str | None:
        """Return where the artifact proxy has the file, None when the run's artifacts lie outside of it."""
        there, here = urlsplit(run.artifact_uri), urlsplit(self.uri)
        if there.netloc not in {"", here.netloc}:
            return None
        if there.scheme == "mlflow-artifacts":
            folder = there.path
        elif there.scheme in {"http", "https"} and f"{_PROXY}/" in there.path:
            folder = there.path.split(f"{_PROXY}/", 1)[1]
        else:
            return None
        return f"{self.uri}{_PROXY}/{quote(folder.strip('/'))}/{quote(path)}"

    def _call(self, method: str, endpoint: str, **fields: Any) -> dict[str, Any]:
        """Call an endpoint of the REST API; raises NotThere or AlreadyThere for these answers of MLflow."""
        url = f"{self.uri}/api/2.0/mlflow/{endpoint}"
        content: dict[str, Any] = {"params": fields} if method == "GET" else {"json": fields}
        answer = self._send(method, url, where=endpoint, api=True, **content)
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise Unavailable(
                f"MLflow at {shown_uri(self.uri)}: {endpoint} did not answer with JSON",
                tip="is MLFLOW_TRACKING_URI an MLflow?",
            )
        return found

    def _send(
        self, method: str, url: str, where: str, api: bool = False, timeout: float = _READ_S, **rest: Any
    ) -> requests.Response:
        creates = method == "POST" and url.endswith("/create")
        pauses = [] if creates else [0.2, 0.6, 1.5]
        while True:
            with _reachable(self.uri):
                answer = self._session.request(method, url, timeout=(_CONNECT_S, timeout), **rest)
            if not pauses or not (answer.status_code in _AGAIN or _collided(answer)):
                break
            time.sleep(pauses.pop(0))
        if answer.ok:
            return answer
        raise _refused(answer, self.uri, where, api)


@contextmanager
def _reachable(uri: str) -> Generator[None]:
    try:
        yield
    except requests.exceptions.InvalidURL:
        raise Mistake(f"MLFLOW_TRACKING_URI: '{shown_uri(uri)}' is not a usable address") from None
    except requests.exceptions.RequestException as error:
        kind = "timed out" if isinstance(error, requests.exceptions.Timeout) else "does not answer"
        raise Unavailable(
            f"MLflow at {shown_uri(uri)} {kind} ({type(error).__name__})",
            tip="start the local platform with `make up`, or correct MLFLOW_TRACKING_URI, then run this again",
        ) from None


def _collided(answer: requests.Response) -> bool:
    return answer.status_code == 400 and _COLLISION.search(answer.text) is not None


def _refused(answer: requests.Response, uri: str, where: str, api: bool) -> Exception:
    """Return the exception that stands for an answer other than 2xx."""
    try:
        told: Any = answer.json()
    except ValueError:
        told = {}
    told = told if isinstance(told, dict) else {}
    if told.get("error_code") == "RESOURCE_DOES_NOT_EXIST" and api:
        return NotThere()
    if told.get("error_code") == "RESOURCE_ALREADY_EXISTS" and api:
        return AlreadyThere()
    if answer.status_code == 404 and not api:
        return NoArtifact(f"MLflow at {shown_uri(uri)} has no file {where}")
    message = str(told.get("message") or answer.reason or "").splitlines()[:1]
    line = f"MLflow at {shown_uri(uri)}: {where}: {answer.status_code} {message[0] if message else ''}".rstrip()
    if answer.status_code in {401, 403}:
        tip = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        return Mistake(line, tip=f"{tip}; a 403 may also mean the server's --allowed-hosts")
    if answer.status_code >= 500 or answer.status_code == 429 or _collided(answer):
        return Unavailable(line, tip="see the log of the MLflow server")
    return Mistake(line)


def _tags(entry: Mapping[str, Any]) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in entry.get("tags", [])}


def _run(entry: Mapping[str, Any]) -> Run:
    info, data = entry["info"], entry.get("data", {})
    return Run(
        id=info["run_id"],
        status=info.get("status", "RUNNING"),
        started=int(info.get("start_time", 0)),
        ended=int(info["end_time"]) if "end_time" in info else None,
        artifact_uri=info["artifact_uri"],
        tags=_tags(data),
        params={param["key"]: param.get("value", "") for param in data.get("params", [])},
        metrics={metric["key"]: float(metric["value"]) for metric in data.get("metrics", [])},
        datasets=tuple(used["dataset"]["digest"] for used in entry.get("inputs", {}).get("dataset_inputs", [])),
    )


def _version(entry: Mapping[str, Any]) -> Version:
    return Version(entry["name"], int(entry["version"]), entry.get("run_id", ""), _tags(entry))
