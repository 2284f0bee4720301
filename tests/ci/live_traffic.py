"""Make what `wharf monitor` reads, without servers: a release in git, a reference, a prediction log, labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ci.release import Release, dump, path_of
from ci.shell import git
from ci.workspace import Workspace, load_spec

RUN = "a1" * 16
Rows = NDArray[np.float64]


def release(
    workspace: Workspace, model: str = "tumor", environment: str = "dev", version: int = 1, run: str = RUN
) -> None:
    """Commit a release as `promote` would; there is no remote, so HEAD counts."""
    sha = "sha256:" + "0" * 64
    pin = Release(
        model, environment, version, run, f"{model}:{'0' * 16}", f"wharf.local/{model}@{sha}", sha, sha, sha, "0" * 40
    )
    path = workspace.root / path_of(environment, model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(pin))
    git(workspace.root, "add", str(path))
    git(workspace.root, "commit", "--quiet", f"--message=Promote {model} version {version} to {environment}")


def healthy(rows: int, columns: int = 30, seed: int = 0) -> Rows:
    """Return rows [rows, columns] that keep the ranges of every tumor column, skewed as measurements are."""
    return np.random.default_rng(seed).gamma(9.0, 0.001, (rows, columns))


def reference(workspace: Workspace, values: Rows, model: str = "tumor", run: str = RUN) -> Path:
    """Put a reference.parquet in the cache, as if it had been read from MLflow."""
    names = load_spec(workspace, model).data.names()
    table = {name: values[:, i] for i, name in enumerate(names)}
    table |= {"diagnosis": np.arange(len(values)) % 2, "prediction": np.arange(len(values)) % 2}
    table |= {"score": np.linspace(0, 1, len(values))}
    path = workspace.state / "cache" / "reference" / run / "reference.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path)
    return path


def entry(number: int, rows: list[list[Any]], when: float, **changes: Any) -> dict[str, Any]:
    """Return one line of the log; the predictions alternate."""
    names = ["benign", "malignant"]
    line: dict[str, Any] = {"ts": when, "id": f"r{number}", "model": "tumor", "version": 1, "environment": "dev"}
    line |= {"status": 200, "ms": 1.0, "rows": rows, "predictions": [names[(number + i) % 2] for i in range(len(rows))]}
    line |= {"scores": [0.1 + 0.8 * ((number + i) % 2) for i in range(len(rows))]}
    return line | changes


def refused(
    number: int, when: float, status: int = 422, error: str = "rows.0.mean_radius: is missing"
) -> dict[str, Any]:
    """Return the line of a request that was not answered."""
    line: dict[str, Any] = {"ts": when, "id": f"e{number}", "model": "tumor", "version": 1, "environment": "dev"}
    return line | {"status": status, "ms": 0.2, "error": error}


def write_log(
    workspace: Workspace, lines: list[dict[str, Any]], day: str, model: str = "tumor", environment: str = "dev"
) -> Path:
    """Append lines to the log of `day` (YYYY-MM-DD)."""
    path = workspace.predictions(environment, model) / f"{day}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    return path
