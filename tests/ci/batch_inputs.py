"""A released model, its artifact on this machine, and files to predict for: no MLflow is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ci.release import Release, dump, path_of
from ci.shell import git
from ci.workspace import Workspace
from tests.bentos import artifacts

NAMES = list("abcdef")


def release(workspace: Workspace, made: Path, environment: str = "dev", version: int = 3) -> str:
    """Release the model folder `made` and put it into the cache of artifacts; return its digest."""
    said = json.loads((made / "serving.json").read_text())
    cached = workspace.state / "cache" / "artifacts" / said["sha256"]
    shutil.copytree(made, cached, dirs_exist_ok=True)
    name = said["model"]
    text = dump(
        Release(
            model=name,
            environment=environment,
            version=version,
            run="a" * 32,
            bento=f"{name}:{'0' * 16}",
            image=f"wharf.local/{name}@sha256:{'0' * 64}",
            artifact=f"sha256:{said['sha256']}",
            evidence=f"sha256:{'e' * 64}",
            data=f"sha256:{'d' * 64}",
            commit="c" * 40,
        )
    )
    path = workspace.root / path_of(environment, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    git(workspace.root, "add", str(path))
    git(workspace.root, "commit", "--quiet", f"--message=Release {name} {version} to {environment}")
    return said["sha256"]


def table(rows: int, seed: int = 0, **columns: Any) -> pa.Table:
    """Return rows for `artifacts.table_model`; keywords add columns, or replace those of the model."""
    matrix = np.random.default_rng(seed).normal(size=(rows, len(NAMES)))
    made = {name: matrix[:, i] for i, name in enumerate(NAMES)}
    return pa.table({**made, **columns})


def write(path: Path, rows: pa.Table) -> Path:
    """Write `rows` as CSV or Parquet, by the name of the file."""
    if path.suffix == ".csv":
        rows.to_pandas().to_csv(path, index=False)
    else:
        pq.write_table(rows, path)
    return path


def expected(made: Path, rows: pa.Table) -> tuple[list[str], np.ndarray]:
    """Return what ONNX Runtime itself says of a binary model: classes and probabilities of the second."""
    import onnxruntime

    session = onnxruntime.InferenceSession(made / "artifact.onnx")
    matrix = np.column_stack([rows[name].to_numpy() for name in NAMES]).astype(np.float32)
    labels, probabilities = session.run(["label", "probabilities"], {"rows": matrix})
    classes = artifacts.CLASSES["binary"]
    return [classes[i] for i in labels], probabilities[:, 1]
