"""Versions: the same run is one version, races and kills included, and only what the gate passed gets in."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ci import registry
from ci.cli import main
from ci.errors import Mistake, Refusal, Unavailable
from ci.gate import GateRefusal, gate
from ci.gating import evidence as record
from ci.gating.evidence import Check, Evidence, Interval
from ci.mlflow_api.rest import RestStore
from ci.mlflow_api.store import Run, Version, open_store
from ci.registry import facts, latest, register, set_facts
from ci.workspace import Workspace
from tests.ci.gated import add_model, add_run, fresh_name, logistic, release

pytestmark = pytest.mark.slow


@pytest.fixture
def name(workspace: Workspace, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model of this test's own, and MLFLOW_TRACKING_URI set to the session's server."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.chdir(workspace.root)
    chosen = fresh_name()
    add_model(workspace, chosen)
    return chosen


def passing(workspace: Workspace, uri: str, name: str) -> Run:
    """Add a run with passing evidence, as the gate stores it."""
    store = open_store(uri)
    run = add_run(workspace, uri, name)
    content = record.dump(evidence_of(run))
    store.write(run, record.kept_path(record.digest(content)), content)
    store.write(run, record.NEWEST, content)
    store.set_run_tags(run.id, {record.VERDICT_TAG: "passed", record.DIGEST_TAG: record.digest(content)})
    return run


def evidence_of(run: Run) -> Evidence:
    return Evidence(
        model=run.tags["wharf.model"],
        run=run.id,
        verdict="passed",
        created="2026-01-01T00:00:00+00:00",
        commit=run.tags["wharf.commit"],
        data_sha256=run.tags["wharf.data_sha256"],
        artifact_sha256=run.tags["wharf.artifact_sha256"],
        gate_sha256="0" * 64,
        rows=300,
        champion=None,
        metrics={"roc_auc": Interval(0.9, 0.8, 1.0)},
        checks=(Check("metric.roc_auc.min", 0.9, 0.8, True, "fine"),),
    )


def versions(uri: str, name: str, runs: Sequence[Run]) -> list[list[int]]:
    store = open_store(uri)
    return [[version.number for version in store.versions_of_run(name, run.id)] for run in runs]


def test_a_version_carries_all_facts(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = passing(workspace, mlflow_uri, name)
    assert latest(workspace, name) is None
    assert register(workspace, name) == 1
    known = facts(workspace, name, 1)
    assert known.run == run.id
    assert known.verdict == "passed"
    assert known.artifact == run.tags["wharf.artifact_sha256"]
    assert known.data == run.tags["wharf.data_sha256"]
    assert known.commit == run.tags["wharf.commit"]
    assert (known.bento, known.image) == (None, None)
    assert latest(workspace, name) == 1
    set_facts(workspace, name, 1, bento=f"{name}:{'0' * 16}", image=f"wharf.local/{name}@sha256:{'0' * 64}")
    assert facts(workspace, name, 1).bento == f"{name}:{'0' * 16}"
    assert registry.evidence(workspace, name, 1)["verdict"] == "passed"


def test_the_same_run_is_the_same_version(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    first = passing(workspace, mlflow_uri, name)
    assert [register(workspace, name, first.id) for _ in range(3)] == [1, 1, 1]
    second = passing(workspace, mlflow_uri, name)
    assert register(workspace, name, second.id) == 2
    assert register(workspace, name, first.id) == 1
    assert latest(workspace, name) == 2


def test_threads_that_register_one_run_make_one_version(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = passing(workspace, mlflow_uri, name)
    start = threading.Barrier(8)

    def one(_: int) -> int:
        start.wait()
        return register(workspace, name, run.id)

    with ThreadPoolExecutor(8) as pool:
        numbers = set(pool.map(one, range(8)))
    assert len(numbers) == 1
    assert versions(mlflow_uri, name, [run]) == [list(numbers)]
    assert facts(workspace, name, numbers.pop()).run == run.id


def test_creations_that_all_pass_the_first_look_leave_one(
    workspace: Workspace, mlflow_uri: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The race at its worst: nobody finds a version, then all create one."""
    run = passing(workspace, mlflow_uri, name)
    looked = threading.Barrier(4)
    create = RestStore.create_version

    def together(self: RestStore, model: str, of: Run, description: str, tags: dict[str, str]) -> Version:
        looked.wait()
        return create(self, model, of, description, tags)

    monkeypatch.setattr(RestStore, "create_version", together)
    with ThreadPoolExecutor(4) as pool:
        numbers = set(pool.map(lambda _: register(workspace, name, run.id), range(4)))
    assert numbers == {1}
    assert versions(mlflow_uri, name, [run]) == [[1]]
    assert latest(workspace, name) == 1


def _wharf(workspace: Workspace, uri: str, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ci.cli", *words],
        cwd=workspace.root,
        env={**os.environ, "MLFLOW_TRACKING_URI": uri},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_processes_with_different_runs_make_different_versions(
    workspace: Workspace, mlflow_uri: str, name: str
) -> None:
    runs = [passing(workspace, mlflow_uri, name) for _ in range(2)]
    both = [_wharf(workspace, mlflow_uri, "register", name, "--run", run.id, "--json") for run in (*runs, *runs)]
    told = [json.loads(process.communicate(timeout=120)[0]) for process in both]
    assert [process.returncode for process in both] == [0] * 4
    assert [one["run"] for one in told] == [run.id for run in (*runs, *runs)]
    assert {one["version"] for one in told[:2]} == {one["version"] for one in told[2:]}
    assert sorted(len(found) for found in versions(mlflow_uri, name, runs)) == [1, 1]
    assert len({one["version"] for one in told}) == 2


def _killed_at(workspace: Workspace, uri: str, name: str, method: str) -> None:
    """Register in a process that kills itself when it would call `method`."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    if method == "half of the tags":
        method = "set_version_tags"
        whole = RestStore.set_version_tags

        def half(self: RestStore, model: str, number: int, tags: dict[str, str]) -> None:
            whole(self, model, number, dict(list(tags.items())[:2]))
            os.kill(os.getpid(), signal.SIGKILL)

        RestStore.set_version_tags = half  # type: ignore[method-assign,assignment]
    else:
        setattr(RestStore, method, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    register(workspace, name)


@pytest.mark.parametrize("moment", ["create_version", "set_version_tags", "half of the tags"])
def test_killed_in_the_middle_is_repaired_by_running_again(
    workspace: Workspace, mlflow_uri: str, name: str, moment: str
) -> None:
    run = passing(workspace, mlflow_uri, name)
    child = multiprocessing.get_context("spawn").Process(target=_killed_at, args=(workspace, mlflow_uri, name, moment))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    assert latest(workspace, name) is None
    if moment != "create_version":
        with pytest.raises(Mistake, match="incomplete") as fault:
            facts(workspace, name, 1)
        assert fault.value.tip == f"complete it with `wharf register {name} --run {run.id}`"
    assert register(workspace, name) == 1
    assert facts(workspace, name, 1).run == run.id
    assert versions(mlflow_uri, name, [run]) == [[1]]


def test_latest_steps_over_an_incomplete_version(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    passing(workspace, mlflow_uri, name)
    register(workspace, name)
    store = open_store(mlflow_uri)
    store.create_version(name, passing(workspace, mlflow_uri, name), "interrupted", {})
    assert store.newest_number(name) == 2
    assert latest(workspace, name) == 1


def test_a_version_that_a_person_made_is_left_alone(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = passing(workspace, mlflow_uri, name)
    store = open_store(mlflow_uri)
    store.ensure_model(name, "", {})
    store.create_version(name, run, "by hand", {})
    assert register(workspace, name) == 2
    assert versions(mlflow_uri, name, [run]) == [[1, 2]]


def test_a_lost_answer_of_the_creation_makes_no_double(
    workspace: Workspace, mlflow_uri: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = passing(workspace, mlflow_uri, name)
    create = RestStore.create_version

    def lost(self: RestStore, model: str, of: Run, description: str, tags: dict[str, str]) -> Version:
        create(self, model, of, description, tags)
        raise Unavailable("the connection broke")

    monkeypatch.setattr(RestStore, "create_version", lost)
    assert register(workspace, name) == 1
    assert versions(mlflow_uri, name, [run]) == [[1]]


def test_a_run_without_evidence_is_refused(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = add_run(workspace, mlflow_uri, name)
    with pytest.raises(Refusal, match="has no evidence") as fault:
        register(workspace, name)
    assert fault.value.tip == f"gate it with `wharf gate {name} --run {run.id}`"
    assert latest(workspace, name) is None


def test_a_run_that_the_gate_refused_is_refused_with_its_checks(
    workspace: Workspace, mlflow_uri: str, name: str
) -> None:
    add_run(workspace, mlflow_uri, name, artifact=logistic((0.0, 1.0, 0.0)))
    with pytest.raises(GateRefusal):
        gate(workspace, name)
    with pytest.raises(Refusal, match="was refused by the gate") as fault:
        register(workspace, name)
    assert any(line.startswith("metric.roc_auc.min: 0.") for line in fault.value.lines)


def test_evidence_that_was_changed_is_refused(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = passing(workspace, mlflow_uri, name)
    store = open_store(mlflow_uri)
    store.write(run, record.NEWEST, store.read(run, record.NEWEST).replace(b"300", b"900"))
    with pytest.raises(Refusal, match="has no evidence, or gating it was interrupted"):
        register(workspace, name)


def test_evidence_of_another_run_is_refused(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    one, other = passing(workspace, mlflow_uri, name), add_run(workspace, mlflow_uri, name)
    store = open_store(mlflow_uri)
    content = store.read(one, record.NEWEST)
    store.write(other, record.NEWEST, content)
    store.set_run_tags(other.id, {record.DIGEST_TAG: record.digest(content)})
    with pytest.raises(Refusal, match=r"evidence.json: run is"):
        register(workspace, name, other.id)


def test_an_artifact_with_one_flipped_byte_is_refused(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = passing(workspace, mlflow_uri, name)
    content = bytearray(logistic())
    content[40] ^= 1
    open_store(mlflow_uri).write(run, "model/artifact.onnx", bytes(content))
    with pytest.raises(Refusal, match="the gate saw"):
        register(workspace, name)
    assert latest(workspace, name) is None


def test_gating_again_never_takes_the_evidence_from_a_version(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    run = add_run(workspace, mlflow_uri, name)
    gate(workspace, name, run.id)
    number = register(workspace, name, run.id)
    before = registry.evidence(workspace, name, number)
    release(workspace, "dev", name, 7, add_run(workspace, mlflow_uri, name))
    assert not gate(workspace, name, run.id).reused  # there is a champion now: new evidence
    assert register(workspace, name, run.id) == number
    assert registry.evidence(workspace, name, number) == before


def test_evidence_of_a_version_that_is_gone_or_changed_is_refused(
    workspace: Workspace, mlflow_uri: str, name: str
) -> None:
    run = passing(workspace, mlflow_uri, name)
    register(workspace, name)
    store = open_store(mlflow_uri)
    known = facts(workspace, name, 1)
    for path in (record.NEWEST, record.kept_path(known.evidence)):
        store.write(run, path, b"{}")
    with pytest.raises(Refusal, match=f"sha256 {known.evidence[:16]}… is expected"):
        registry.evidence(workspace, name, 1)


def test_an_unknown_version_is_a_mistake(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    with pytest.raises(Mistake, match=f"model '{name}' has no version 3 in the registry; it has none"):
        facts(workspace, name, 3)
    passing(workspace, mlflow_uri, name)
    register(workspace, name)
    with pytest.raises(Mistake, match="the newest is 1"):
        facts(workspace, name, 3)


def test_an_unknown_fact_is_a_bug(workspace: Workspace, name: str) -> None:
    with pytest.raises(TypeError, match="digest"):
        set_facts(workspace, name, 1, digest="0")


def test_mlflow_down(workspace: Workspace, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    for call in (lambda: facts(workspace, name, 1), lambda: latest(workspace, name), lambda: register(workspace, name)):
        with pytest.raises(Unavailable, match="does not answer"):
            call()
    assert main(["register", name]) == 4


def test_the_rest_path_imports_neither_mlflow_nor_pandas(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    passing(workspace, mlflow_uri, name)
    register(workspace, name)
    code = (
        "import sys; from ci import registry; from ci.workspace import find; w = find(); "
        f"registry.facts(w, '{name}', registry.latest(w, '{name}')); registry.evidence(w, '{name}', 1); "
        "print([m for m in ('mlflow', 'pandas', 'sklearn') if m in sys.modules])"
    )
    env = {**os.environ, "MLFLOW_TRACKING_URI": mlflow_uri}
    said = subprocess.run([sys.executable, "-c", code], cwd=workspace.root, env=env, capture_output=True, text=True)
    assert said.stdout.strip() == "[]", said.stderr


def test_a_tracking_database_without_a_server_works_too(
    workspace: Workspace, mlflow_db: str, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same contract through MLflow's own client."""
    from mlflow import MlflowClient

    name = "tiny"
    add_model(workspace, name)
    client = MlflowClient(mlflow_db)
    location = (workspace.root.parent / "artifacts").as_uri()
    run_id = client.create_run(client.create_experiment(name, artifact_location=location)).info.run_id
    store = open_store(mlflow_db)
    run = store.run(run_id)
    assert run is not None and not run.complete
    assert store.newest_run(name) is None and store.run("0" * 32) is None
    artifact = logistic()
    sha256 = record.digest(artifact)
    tags = {"model": name, "commit": "a" * 40, "data_sha256": "d" * 64, "artifact_sha256": sha256, "state": "complete"}
    store.set_run_tags(run_id, {f"wharf.{key}": value for key, value in tags.items()})
    store.write(run, "model/artifact.onnx", artifact)
    store.write(run, "model/serving.json", json.dumps({"file": "artifact.onnx"}).encode())
    client.set_terminated(run_id)
    run = store.newest_run(name)
    assert run is not None and run.complete
    content = record.dump(evidence_of(run))
    store.write(run, record.NEWEST, content)
    store.set_run_tags(run_id, {record.DIGEST_TAG: record.digest(content)})
    assert [register(workspace, name) for _ in range(2)] == [1, 1]
    assert facts(workspace, name, 1).run == run_id and latest(workspace, name) == 1
    assert registry.evidence(workspace, name, 1)["verdict"] == "passed"
    with pytest.raises(Mistake, match="has no file evidence/other"):
        store.read(run, "evidence/other")
    store.delete_version(name, 1)
    store.delete_version(name, 1)
    assert latest(workspace, name) is None


@pytest.fixture
def answering(request: pytest.FixtureRequest) -> tuple[str, list[str]]:
    """A server that answers every request with one status; returns its address and the requests' authorizations."""
    status, body = request.param
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    request.addfinalizer(lambda: (server.shutdown(), server.server_close()))
    return f"http://127.0.0.1:{server.server_port}", seen


@pytest.mark.parametrize("answering", [(401, b"who are you")], indirect=True)
def test_refused_credentials_say_which_settings(answering: tuple[str, list[str]]) -> None:
    with pytest.raises(Mistake, match="runs/get: 401") as fault:
        RestStore(answering[0]).run("0" * 32)
    assert "MLFLOW_TRACKING_USERNAME" in fault.value.tip


@pytest.mark.parametrize("answering", [(200, b'{"run": null}')], indirect=True)
@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        ({"MLFLOW_TRACKING_TOKEN": "secret"}, "Bearer secret"),
        ({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}, "Basic dTpw"),
        ({}, ""),
    ],
)
def test_credentials_from_the_environment_are_sent(
    answering: tuple[str, list[str]], settings: dict[str, str], sent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in settings.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(TypeError):  # not an answer of MLflow
        RestStore(answering[0]).run("0" * 32)
    assert answering[1] == [sent]


@pytest.mark.parametrize("answering", [(200, b"<html>a login page</html>")], indirect=True)
def test_something_that_is_not_mlflow(answering: tuple[str, list[str]]) -> None:
    with pytest.raises(Unavailable, match="did not answer with JSON"):
        RestStore(answering[0]).run("0" * 32)


@pytest.mark.parametrize("answering", [(503, b"busy")], indirect=True)
def test_a_busy_server_is_asked_again_and_then_unavailable(answering: tuple[str, list[str]]) -> None:
    with pytest.raises(Unavailable, match="503"):
        RestStore(answering[0]).run("0" * 32)
    assert len(answering[1]) == 4
