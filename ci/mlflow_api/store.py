"""What Modelwharf needs of an MLflow tracking server and registry, whatever way it is reached.

`connect(workspace)` returns a `Store`: over plain HTTP for http(s) addresses (`ci.mlflow_api.rest`, no mlflow import,
which takes seconds), through MLflow's own client for every other tracking URI (`ci.mlflow_api.client`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ci.errors import Mistake
from ci.workspace import Workspace, tracking_uri


class NoArtifact(Mistake):
    """A run has no such file."""


@dataclass(frozen=True)
class Run:
    """One MLflow run; times are milliseconds since 1970, `ended` is None while it runs."""

    id: str
    status: str
    started: int
    ended: int | None
    artifact_uri: str
    tags: Mapping[str, str] = field(default_factory=dict[str, str])
    params: Mapping[str, str] = field(default_factory=dict[str, str])
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    datasets: tuple[str, ...] = ()  # digests (36 characters) of the dataset inputs, which cannot be changed later

    @property
    def complete(self) -> bool:
        """Whether training recorded all of it: only such runs are gated, registered or reused."""
        return self.status == "FINISHED" and self.tags.get("wharf.state") == "complete"


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    model: str
    number: int
    run: str
    tags: Mapping[str, str] = field(default_factory=dict[str, str])


class Store(Protocol):
    """Point reads and small writes; raises Unavailable when MLflow does not answer, Mistake when it refuses.

    Writes are idempotent (a tag is set to a value, a file replaced, a version deleted) except `create_version`.
    """

    uri: str

    def run(self, run_id: str) -> Run | None: ...

    def newest_run(self, experiment: str) -> Run | None:
        """Return the complete run of `experiment` that started last."""
        ...

    def set_run_tags(self, run_id: str, tags: Mapping[str, str]) -> None: ...

    def read(self, run: Run, path: str) -> bytes:
        """Return the file `path` of the run's artifacts; raises NoArtifact."""
        ...

    def download(self, run: Run, path: str, target: Path) -> Path:
        """Stream the file `path` of the run's artifacts into the file `target`; raises NoArtifact."""
        ...

    def write(self, run: Run, path: str, content: bytes) -> None: ...

    def ensure_model(self, model: str, description: str, tags: Mapping[str, str]) -> None:
        """Create the registered model unless it exists, then set description and tags."""
        ...

    def newest_number(self, model: str) -> int | None:
        """Return the highest version number of `model`, complete or not."""
        ...

    def version(self, model: str, number: int) -> Version | None: ...

    def versions_of_run(self, model: str, run_id: str) -> list[Version]:
        """Return the versions made from `run_id`, lowest number first."""
        ...

    def create_version(self, model: str, run: Run, description: str, tags: Mapping[str, str]) -> Version: ...

    def delete_version(self, model: str, number: int) -> None:
        """Delete a version; one that is already gone is fine."""
        ...

    def set_version_tags(self, model: str, number: int, tags: Mapping[str, str]) -> None:
        """Set tags in the given order."""
        ...


def connect(workspace: Workspace) -> Store:
    """Return the store of `workspace` (see `tracking_uri`); does not talk to it yet."""
    return open_store(tracking_uri(workspace))


def open_store(uri: str) -> Store:
    """Return the store behind an MLflow tracking URI."""
    if uri.startswith(("http://", "https://")):
        from ci.mlflow_api.rest import RestStore

        return RestStore(uri)
    from ci.mlflow_api.client import ClientStore  # imports mlflow: seconds

    return ClientStore(uri)
