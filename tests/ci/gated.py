"""Small real runs for the tests of gate, registry and lineage, logged over MLflow's REST API.

The model `tiny` tells whether `a + noise` is positive from `a`, `b` and the category `kind`; its artifact is a real
ONNX file, a logistic regression with given weights.
"""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import requests
import yaml
from onnx import TensorProto, checker, helper, numpy_helper

from ci.mlflow_api.store import Run, open_store
from ci.release import Release, dump, path_of
from ci.shell import git
from ci.workspace import Workspace

KINDS = ["red", "green", "blue"]
GATE = {
    "metrics": {"roc_auc": {"min": 0.8, "champion": {"max_drop": 0.02}}, "log_loss": {"max": 0.6}},
    "slices": [{"column": "a", "bins": 2, "metric": "accuracy", "min": 0.6}],
    "latency_p99_ms": 200,
    "artifact_mb": 1,
}


def add_model(workspace: Workspace, name: str, **gate: object) -> None:
    """Write the contract of a model like `tiny`; keywords replace parts of its gate."""
    contract = {
        "name": name,
        "description": "A model for tests.",
        "owner": "tests",
        "team": "tests",
        "task": "binary",
        "data": {
            "source": {"kind": "builtin"},
            "target": "y",
            "classes": ["no", "yes"],
            "columns": [{"name": "a"}, {"name": "b"}, {"name": "kind", "type": "category", "values": KINDS}],
        },
        "gate": {**GATE, **gate},
    }
    folder = workspace.models / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.yaml").write_text(yaml.safe_dump(contract, sort_keys=False))


def fresh_name() -> str:
    """Return a model name that nobody else uses on the shared server."""
    return f"t{uuid.uuid4().hex[:10]}"


def rows(count: int = 300, seed: int = 1) -> pd.DataFrame:
    """Return rows of the model's data, inputs and target."""
    random = np.random.default_rng(seed)
    a, b = random.normal(size=count), random.normal(size=count)
    kind = random.choice(KINDS, count)
    y = (a + random.normal(scale=0.5, size=count) > 0).astype(np.int64)
    return pd.DataFrame({"a": a, "b": b, "kind": kind, "y": y})


def logistic(weights: tuple[float, float, float] = (3.0, 0.0, 0.0)) -> bytes:
    """Return an ONNX logistic regression over (a, b, kind), as the serving runtime loads it."""
    constants = [
        numpy_helper.from_array(np.array(weights, np.float32).reshape(3, 1), "w"),
        numpy_helper.from_array(np.array([1.0], np.float32), "one"),
        numpy_helper.from_array(np.array([0.5], np.float32), "half"),
        numpy_helper.from_array(np.array([-1], np.int64), "flat"),
    ]
    nodes = [
        helper.make_node("MatMul", ["rows", "w"], ["z"]),
        helper.make_node("Sigmoid", ["z"], ["p"]),
        helper.make_node("Sub", ["one", "p"], ["q"]),
        helper.make_node("Concat", ["q", "p"], ["probabilities"], axis=1),
        helper.make_node("Greater", ["p", "half"], ["said"]),
        helper.make_node("Cast", ["said"], ["number"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["number", "flat"], ["label"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("rows", TensorProto.FLOAT, [None, 3])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


def serving(name: str, artifact: bytes, classes: tuple[str, ...] = ("no", "yes")) -> dict[str, object]:
    columns: list[dict[str, object]] = [
        {"name": "a", "type": "float", "min": None, "max": None, "values": None},
        {"name": "b", "type": "float", "min": None, "max": None, "values": None},
        {"name": "kind", "type": "category", "min": None, "max": None, "values": KINDS},
    ]
    return {
        "model": name,
        "task": "binary",
        "format": "onnx",
        "file": "artifact.onnx",
        "sha256": hashlib.sha256(artifact).hexdigest(),
        "columns": columns,
        "classes": list(classes),
    }


def add_run(
    workspace: Workspace,
    uri: str,
    name: str,
    artifact: bytes | None = None,
    holdout: pd.DataFrame | None = None,
    reference: pd.DataFrame | None = None,
    tags: Mapping[str, str] | None = None,
    described: Mapping[str, object] | None = None,
) -> Run:
    """Log a run as training does; arguments replace what a good run has. Returns it as MLflow has it."""

    def post(endpoint: str, **fields: object) -> dict[str, dict[str, dict[str, str]]]:
        answer = requests.post(f"{uri}/api/2.0/mlflow/{endpoint}", json=fields, timeout=30)
        assert answer.ok or "ALREADY_EXISTS" in answer.text, answer.text
        return answer.json()

    post("experiments/create", name=name)
    query = {"experiment_name": name}
    found = requests.get(f"{uri}/api/2.0/mlflow/experiments/get-by-name", params=query, timeout=30).json()
    number = found["experiment"]["experiment_id"]
    begun = int(time.time() * 1000)
    run_id = post("runs/create", experiment_id=number, start_time=begun)["run"]["info"]["run_id"]
    content = logistic() if artifact is None else artifact
    said = {
        "wharf.model": name,
        "wharf.commit": git(workspace.root, "rev-parse", "HEAD"),
        "wharf.dirty": "false",
        "wharf.data_sha256": "d" * 64,
        "wharf.lock_sha256": "e" * 64,
        "wharf.artifact_sha256": hashlib.sha256(content).hexdigest(),
        "wharf.state": "complete",
        **(tags or {}),
    }
    for key, value in said.items():
        post("runs/set-tag", run_id=run_id, key=key, value=value)
    dataset = {"name": name, "digest": "d" * 36, "source_type": "code", "source": "{}"}
    post("runs/log-inputs", run_id=run_id, datasets=[{"dataset": dataset, "tags": []}])
    post("runs/log-parameter", run_id=run_id, key="C", value="1.0")
    store = open_store(uri)
    run = store.run(run_id)
    assert run is not None
    store.write(run, "model/artifact.onnx", content)
    store.write(run, "model/serving.json", json.dumps(described or serving(name, content)).encode())
    store.write(run, "holdout.parquet", (rows() if holdout is None else holdout).to_parquet())
    store.write(run, "reference.parquet", (rows(200, seed=2) if reference is None else reference).to_parquet())
    post("runs/update", run_id=run_id, status="FINISHED", end_time=int(time.time() * 1000))
    complete = store.run(run_id)
    assert complete is not None
    return complete


def release_text(name: str, environment: str, version: int, run: Run, evidence: str = "f" * 64) -> str:
    """Return the text of a release of `run`."""
    return dump(
        Release(
            model=name,
            environment=environment,
            version=version,
            run=run.id,
            bento=f"{name}:{'0' * 16}",
            image=f"wharf.local/{name}@sha256:{'0' * 64}",
            artifact=f"sha256:{run.tags['wharf.artifact_sha256']}",
            evidence=f"sha256:{evidence}",
            data=f"sha256:{run.tags['wharf.data_sha256']}",
            commit=run.tags["wharf.commit"],
        )
    )


def release(
    workspace: Workspace, environment: str, name: str, version: int, run: Run, evidence: str = "f" * 64
) -> Path:
    """Write a release into the working tree and commit it."""
    path = workspace.root / path_of(environment, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(release_text(name, environment, version, run, evidence))
    git(workspace.root, "add", str(path))
    git(workspace.root, "commit", "--quiet", f"--message=Release {name} {version} to {environment}")
    return path
