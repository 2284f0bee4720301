"""RegistryDouble: a small real HTTP server that answers the endpoints of MLflow's REST API that releases need.

It speaks the documents that MLflow 3 sends for these endpoints (see `ci/mlflow_api/rest.py`), so the code under test
takes the same way as to a real server, in milliseconds. A slow test of each user runs against a real MLflow as well.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from ci.registry import VersionFacts

_ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts/"


def digest(*words: object) -> str:
    """Return a sha256 that depends on `words`, for facts that need one."""
    return hashlib.sha256(repr(words).encode()).hexdigest()


class _Server(ThreadingHTTPServer):
    """With room for many connections at once: a full queue costs a client the second until TCP tries again."""

    request_queue_size = 128


class RegistryDouble:
    """Versions with their tags, and the evidence of their runs; `url` is where it listens."""

    def __init__(self) -> None:
        self.versions: dict[tuple[str, int], dict[str, str]] = {}
        self.artifacts: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.status = 200  # another code is answered to everything
        double = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                double.answer(self)

            do_POST = do_GET

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; from then on connections are refused."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def add(
        self, model: str, number: int, *, commit: str = "c" * 40, evidence: dict[str, Any] | None = None, **tags: str
    ) -> VersionFacts:
        """Put a gated and built version into the registry and return its facts.

        `tags` replace facts by the names of VersionFacts (`verdict="refused"`, `bento=""` for a version not built).
        """
        run = digest(model, number, "run")[:32]
        document = evidence or {
            "schema": 1,
            "model": model,
            "run": run,
            "verdict": "passed",
            "created": "2026-11-21T00:00:00+00:00",
            "commit": commit,
            "data_sha256": digest(model, "data"),
            "artifact_sha256": digest(model, number, "artifact"),
            "rows": 171,
            "champion": None,
            "metrics": {"roc_auc": {"value": 0.99, "low": 0.98, "high": 1.0}},
            "checks": [
                {"name": "metric.roc_auc.min", "value": 0.99, "bound": 0.97, "passed": True, "detail": "0.99 >= 0.97"}
            ],
        }
        content = json.dumps(document).encode()
        bento = digest(model, number, "bento")
        facts: dict[str, str] = {
            "run": run,
            "verdict": "passed",
            "evidence": hashlib.sha256(content).hexdigest(),
            "artifact": digest(model, number, "artifact"),
            "data": digest(model, "data"),
            "commit": commit,
            "bento": f"{model}:{bento[:16]}",
            "image": f"wharf.local/{model}@sha256:{bento}",
        } | tags
        self.artifacts[f"{run}/evidence/evidence.json"] = content
        suffix = {"evidence": "_sha256", "artifact": "_sha256", "data": "_sha256"}
        self.versions[model, number] = {f"wharf.{key}{suffix.get(key, '')}": value for key, value in facts.items()}
        known: dict[str, Any] = {**facts, "bento": facts["bento"] or None, "image": facts["image"] or None}
        return VersionFacts(model=model, version=number, **known)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        parts = urlsplit(request.path)
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else {}
        fields = {key: values[0] for key, values in parse_qs(parts.query).items()} | body
        self.calls.append(f"{request.command} {parts.path}")
        code, content = self._reply(parts.path, fields)
        if self.status != 200:
            code, content = self.status, b'{"message": "told to fail"}'
        request.send_response(code)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _reply(self, path: str, fields: dict[str, Any]) -> tuple[int, bytes]:
        if path.startswith(_ARTIFACTS):
            content = self.artifacts.get(unquote(path.removeprefix(_ARTIFACTS)))
            return (200, content) if content is not None else (404, b"{}")
        endpoint = path.removeprefix("/api/2.0/mlflow/")
        document = self._document(endpoint, fields)
        if document is None:
            missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"{endpoint}: no {fields}"}
            return 404, json.dumps(missing).encode()
        return 200, json.dumps(document).encode()

    def _document(self, endpoint: str, fields: dict[str, Any]) -> dict[str, Any] | None:
        if endpoint == "registered-models/get":
            numbers = sorted(number for model, number in self.versions if model == fields["name"])
            latest = [self._version(fields["name"], number) for number in numbers[-1:]]
            return {"registered_model": {"name": fields["name"], "latest_versions": latest}} if numbers else None
        if endpoint in {"model-versions/get", "model-versions/set-tag"}:
            key = fields["name"], int(fields["version"])
            if key not in self.versions:
                return None
            if endpoint.endswith("set-tag"):
                self.versions[key][fields["key"]] = fields["value"]
                return {}
            return {"model_version": self._version(*key)}
        if endpoint == "runs/get":
            for (model, _), tags in self.versions.items():
                if tags["wharf.run"] == fields["run_id"]:
                    return {"run": self._run(model, tags)}
        return None

    def _version(self, model: str, number: int) -> dict[str, Any]:
        tags = self.versions[model, number]
        entries = [{"key": key, "value": value} for key, value in tags.items() if value]
        return {"name": model, "version": str(number), "run_id": tags["wharf.run"], "tags": entries}

    def _run(self, model: str, tags: dict[str, str]) -> dict[str, Any]:
        run = tags["wharf.run"]
        info = {"run_id": run, "status": "FINISHED", "start_time": 1, "end_time": 2}
        own = {"wharf.model": model, "wharf.state": "complete", "wharf.artifact_sha256": tags["wharf.artifact_sha256"]}
        return {
            "info": {**info, "artifact_uri": f"mlflow-artifacts:/{run}"},
            "data": {"tags": [{"key": key, "value": value} for key, value in own.items()]},
        }


@contextmanager
def registry_double() -> Generator[RegistryDouble]:
    """Run a RegistryDouble while the block runs."""
    double = RegistryDouble()
    try:
        yield double
    finally:
        double.close()
