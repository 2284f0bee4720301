"""What the cluster's figures are measured with, as far as it needs no cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.bench.cluster import figures, generated, loop, tuning
from tests.ci.gitops_tree import ROOT, make_tree
from tests.e2e.newcomer import User


@pytest.fixture
def user(tmp_path: Path) -> User:
    root = make_tree(tmp_path / "clone")
    shutil.copy(ROOT / "gitops/argocd.yaml", root / "gitops/argocd.yaml")
    (root / "models").mkdir()
    (root / "bentos").mkdir()
    user = User(root)
    user.environment["PYTHONPATH"] = str(ROOT)
    return user


def test_generated_releases_are_valid_and_ask_for_a_node_that_is_not_there(user: User) -> None:
    models = generated.names(6)
    generated.write_models(user.clone, models, teams=3)
    user.wharf("render")
    user.git("add", "--all")
    user.git("commit", "--quiet", "--message", "Models")
    with generated.registry(models) as (url, facts):
        made = generated.Releases(user, models, url, facts)
        made.write(models, 1)
        made.write(models[:1], 2)
        command = [sys.executable, "-m", "ci.cli", "validate", "--changed", "HEAD~2"]
        env = {**user.environment, "MLFLOW_TRACKING_URI": url}
        done = subprocess.run(command, cwd=user.clone, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        for number, model in enumerate(models):
            folder = user.clone / f"gitops/rendered/dev/{model}"
            assert not (folder / "horizontalpodautoscaler.yaml").exists()
            deployment = yaml.safe_load((folder / "deployment.yaml").read_text())
            assert deployment["spec"]["template"]["spec"]["nodeSelector"] == {"modelwharf.io/bench": "nowhere"}
            assert deployment["metadata"]["namespace"] == f"team0{number % 3}-dev"
            assert deployment["metadata"]["labels"]["app.kubernetes.io/version"] == ("2" if number == 0 else "1")
        assert len(list((user.clone / "gitops/rendered/dev/m00000").iterdir())) == 5
        made.remove(models, 1)
    assert not list((user.clone / "gitops/rendered").glob("*/m*"))
    assert user.git("status", "--porcelain") == ""


def test_what_runs_in_the_pod_writes_each_change_of_the_version_once(tmp_path: Path) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    versions = [1, 1, 2, 2, 2]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = json.dumps({"version": versions.pop(0) if len(versions) > 1 else versions[0]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    script = (ROOT / "tests/bench/cluster/watcher.py").read_text()
    command = [sys.executable, "-u", "-c", script, f"http://127.0.0.1:{server.server_address[1]}/predict"]
    with subprocess.Popen(command, env={**os.environ, "BODY": "{}"}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]
        server.shutdown()
        server.server_close()
        lines.append(json.loads(process.stdout.readline()))
        process.terminate()
    assert [line["version"] for line in lines[:2]] == ["1", "2"]
    assert lines[2]["version"].startswith("URLError")
    assert lines[0]["at"] < lines[1]["at"] < lines[2]["at"]


def test_a_table_leaves_out_columns_that_no_row_uses() -> None:
    rows = [figures.Figure("a", "1.0 s", "under 2 s"), figures.Figure("b", "3.0 s")]
    assert figures.text("Title", rows).splitlines() == [
        "### Title",
        "",
        "| figure | measured | aim |",
        "|---|---:|---:|",
        "| a | 1.0 s | under 2 s |",
        "| b | 3.0 s |  |",
    ]


def test_upstreams_settings_are_told_from_ours() -> None:
    plain = tuning.argocd.tuned(tuning.PLAIN, pages=False)
    assert "resource.inclusions" not in plain["argocd-cm"]
    assert not tuning.argocd.environment(tuning.argocd.CONTROLLER, tuning.PLAIN)
    assert plain["argocd-cmd-params-cm"]["controller.operation.processors"] == "10"


def test_a_stage_that_was_seen_late_takes_nothing_from_the_whole() -> None:
    at = {
        "begun": 10.0,
        "push": 12.0,
        "synced": 14.5,
        "scheduled": 14.0,
        "started": 15.0,
        "ready": 18.0,
        "answered": 17.9,
    }
    found = loop.stages(at)
    assert found == {"push": 2.0, "synced": 2.5, "scheduled": 0.0, "started": 0.5, "ready": 3.0, "answered": 0.0}
    assert sum(found.values()) == 8.0
