"""Training and batch prediction as Jobs on the real thing: the same run, the same output, and what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ci.cluster import jobs
from ci.errors import Unavailable
from ci.workspace import load_spec
from models.job_settings import Jobs
from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster

ROWS = 1_000_000


def train(cluster: Cluster, *words: str) -> dict[str, Any]:
    return json.loads(cluster.user.wharf("train", "tumor", "--json", *words))


def test_a_training_on_the_cluster_is_the_run_that_it_would_be_here(cluster: Cluster) -> None:
    begun = time.monotonic()
    made = train(cluster, "--set", "C=0.21", "--force", "--on", "cluster")
    cluster.record("`wharf train --on cluster`, its image built and pulled", time.monotonic() - begun)
    assert "train.roc_auc" in cluster.user.said or "run " in cluster.user.said  # the log of the Job
    here = train(cluster, "--set", "C=0.21")
    assert here == {**made, "reused": True}
    assert train(cluster, "--set", "C=0.21", "--on", "cluster") == here


def test_the_job_leads_back_to_its_commit(cluster: Cluster) -> None:
    made = cluster.kube.list("batch/v1/Job", jobs.NAMESPACE, "app.kubernetes.io/component=train")
    found = max(made, key=lambda job: job["metadata"]["creationTimestamp"])
    assert found["metadata"]["annotations"]["modelwharf.io/commit"] == cluster.user.git("rev-parse", "HEAD")
    assert found["spec"]["template"]["spec"]["containers"][0]["image"].startswith("wharf.local/wharf-trainer@sha256:")


def test_code_in_no_commit_is_refused(cluster: Cluster) -> None:
    file = cluster.user.clone / "models" / "tumor" / "train.py"
    before = file.read_text()
    try:
        file.write_text(before + "# changed\n")
        cluster.user.wharf("train", "tumor", "--on", "cluster", code=2)
    finally:
        file.write_text(before)
    assert "models/tumor/train.py: is not committed, and a Job runs committed code only" in cluster.user.said


def rows(cluster: Cluster, path: Path) -> Path:
    """Write ROWS rows for tumor, different ones in every session."""
    generator = np.random.default_rng(int.from_bytes(os.urandom(8), "big"))
    columns = load_spec(cluster.workspace, "tumor").data.by_name()
    made = {name: generator.uniform(0, column.max or 1.0, ROWS) for name, column in columns.items()}
    pq.write_table(pa.table({"id": np.arange(ROWS), **made}), path)
    return path


def batch_jobs(cluster: Cluster) -> list[dict[str, Any]]:
    return cluster.kube.list("batch/v1/Job", jobs.NAMESPACE, "app.kubernetes.io/component=batch")


def test_a_batch_whose_pod_is_killed_goes_on_and_is_the_same_as_here(tumor: Cluster, tmp_path: Path) -> None:
    user, path = tumor.user, rows(tumor, tmp_path / "in.parquet")
    here, there = tmp_path / "here.parquet", tmp_path / "there.parquet"
    words = ("batch", "tumor", "--version", "1", "--input", str(path))
    user.wharf(*words, "--output", str(here))

    known = {job["metadata"]["name"] for job in batch_jobs(tumor)}
    command = [sys.executable, "-m", "ci.cli", *words, "--output", str(there), "--on", "cluster"]
    running = subprocess.Popen(command, cwd=user.clone, env=user.environment, stderr=subprocess.PIPE, text=True)
    try:
        name = tumor.wait(
            "a new Job",
            lambda: next((j["metadata"]["name"] for j in batch_jobs(tumor) if j["metadata"]["name"] not in known), ""),
            200,
        )
        label = f"batch.kubernetes.io/job-name={name}"
        pod = tumor.wait(
            "its pod",
            lambda: next(
                (p for p in tumor.kube.list("v1/Pod", jobs.NAMESPACE, label) if p["status"]["phase"] == "Running"), None
            ),
            120,
        )
        tumor.kube.delete("v1/Pod", pod["metadata"]["name"], jobs.NAMESPACE)
        _, said = running.communicate(timeout=200)
    finally:
        running.kill()
    assert running.returncode == 4, said
    assert f"the Job {name} " in said
    assert not there.exists()

    begun = time.monotonic()
    user.wharf(*words, "--output", str(there), "--on", "cluster")
    tumor.record(f"`wharf batch --on cluster`, {ROWS:,} rows, the input uploaded before", time.monotonic() - begun)
    assert there.read_bytes() == here.read_bytes()
    manifest = json.loads(Path(f"{there}.json").read_text())
    assert (manifest["on"], manifest["rows"], manifest["version"]) == ("cluster", ROWS, 1)


def work(cluster: Cluster, name: str, code: str, **changes: Any) -> jobs.Work:
    facts: dict[str, Any] = {
        "name": jobs.name_of("test", name, str(time.time())),
        "model": name,
        "team": "tests",
        "step": "test",
        "image": cluster.image,
        "command": ("python3", "-c", code),
        "needs": Jobs(cpu="50m", memory="64Mi", scratch="64Mi"),
        "commit": "c" * 40,
    }
    return jobs.Work(**{**facts, **changes})


FAULTS = {
    "memory": ("x = bytearray(300_000_000); print(len(x))", {}, "ran out of memory: it may use 64Mi"),
    "image": ("", {"image": f"wharf.local/nothing@sha256:{'0' * 64}"}, "cannot start: "),
    "placement": ("print('here')", {"needs": Jobs(node_selector={"nowhere": "true"}, deadline_minutes=1)}, "deadline"),
    "code": ("raise SystemExit(4)", {}, "ended with code 4"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_is_one_line(cluster: Cluster, fault: str) -> None:
    code, changes, line = FAULTS[fault]
    one = work(cluster, fault, code, **changes)
    shown: list[str] = []
    try:
        with pytest.raises(Unavailable) as raised:
            jobs.run_job(cluster.kube, one, shown.append)
    finally:
        cluster.kube.delete("batch/v1/Job", one.name, one.namespace)
    assert len(raised.value.lines) == 1 and line in raised.value.lines[0], (raised.value.lines, shown)
    if fault == "placement":
        assert any(line.startswith("waits: no node takes it: ") for line in shown), shown


REACH = """
import socket, sys
def reaches(host, port):
    try:
        socket.create_connection((host, port), 4).close()
        return True
    except OSError:
        return False
print("reaches", *[name for name, host, port in [
    ("mlflow", "mlflow.modelwharf.svc", 5000), ("kubernetes", "kubernetes.default.svc", 443),
] if reaches(host, port)])
"""


def test_a_job_reaches_mlflow_by_its_name_and_writes_nowhere_but_tmp(cluster: Cluster) -> None:
    shown: list[str] = []
    code = REACH + "open('/tmp/x', 'w').close()\ntry:\n open('/x', 'w')\nexcept OSError as e: print(e.strerror)\n"
    one = work(cluster, "reach", code)
    try:
        jobs.run_job(cluster.kube, one, shown.append)
    finally:
        cluster.kube.delete("batch/v1/Job", one.name, one.namespace)
    said = [line for line in shown if not line.startswith("waits")]
    assert said[0].startswith("reaches mlflow") and said[1] == "Read-only file system", said


def test_ctrl_c_removes_the_job(cluster: Cluster) -> None:
    user = cluster.user
    words = ("train", "tumor", "--set", "C=0.22", "--force", "--on", "cluster")
    running = subprocess.Popen(
        [sys.executable, "-m", "ci.cli", *words],
        cwd=user.clone,
        env=user.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    known = {job["metadata"]["name"] for job in cluster.kube.list("batch/v1/Job", jobs.NAMESPACE)}

    def new() -> set[str]:
        return {job["metadata"]["name"] for job in cluster.kube.list("batch/v1/Job", jobs.NAMESPACE)} - known

    try:
        cluster.wait("a new Job", new, 120)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130 and "is removed" in said, said
    cluster.wait("the Job gone", lambda: not new(), 60)
