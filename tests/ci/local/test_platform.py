"""Starting and stopping the platform. MLflow is a small HTTP server here, except in the last test: the real one takes
ten seconds and more to start, and what the platform sees of it is a command, a port and `/health`."""

from __future__ import annotations

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ci.errors import Unavailable
from ci.local import platform, processes
from ci.shell import git
from ci.status import applications
from ci.workspace import Workspace
from tests.ci.local.fakes import LAUNCHER, ROOT, Origin, call

pytestmark = pytest.mark.slow  # processes of their own in every test

MLFLOW = """
import http.server, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(b"OK")
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""
FIRST = "--first-port"


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path)
    yield made
    platform.down(made)
    assert processes.owned(made.state, "agent", "backend", "mlflow") == []


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        platform, "_mlflow_command", lambda _folder, port: [sys.executable, "-S", "-c", MLFLOW, str(port)]
    )
    # Ports of this test only: others run at the same time.
    monkeypatch.setattr(platform, "MLFLOW_PORTS", [processes.free_port(), processes.free_port()])


def start_agent(workspace: Workspace) -> platform.Part:
    return platform.start_agent(workspace, "--launcher", LAUNCHER, FIRST, str(processes.free_port()))


def pid(workspace: Workspace, part: str) -> int:
    return int(platform.recorded(workspace)[part]["pid"])


@pytest.mark.usefixtures("mlflow")
def test_mlflow_starts_once_and_stops(workspace: Workspace) -> None:
    first = platform.start_mlflow(workspace)
    platform.wait_for_mlflow(workspace, first, 10)
    assert (first.started, first.note) == (True, "")
    assert first.url == f"http://127.0.0.1:{platform.MLFLOW_PORTS[0]}"
    assert platform.mlflow_answers(workspace)
    again = platform.start_mlflow(workspace)
    assert (again.started, again.url) == (False, first.url)
    assert platform.down(workspace) == ["MLflow"]
    assert not platform.mlflow_answers(workspace)
    assert platform.down(workspace) == []
    assert platform.start_mlflow(workspace).url == first.url, "the address is kept"


@pytest.mark.usefixtures("mlflow")
def test_a_killed_mlflow_is_started_again(workspace: Workspace) -> None:
    platform.wait_for_mlflow(workspace, platform.start_mlflow(workspace), 10)
    killed = psutil.Process(pid(workspace, "mlflow"))
    mark = processes.Mark(killed.pid, killed.create_time())
    killed.kill()
    assert processes.wait_until(lambda: not processes.alive(mark), 5)
    assert not platform.mlflow_answers(workspace)
    again = platform.start_mlflow(workspace)
    assert again.started
    platform.wait_for_mlflow(workspace, again, 10)


@pytest.mark.usefixtures("mlflow")
def test_a_taken_port_gives_another_one_that_is_kept(workspace: Workspace) -> None:
    with socket.create_server(("127.0.0.1", platform.MLFLOW_PORTS[0])):
        part = platform.start_mlflow(workspace)
        assert part.note == f"port {platform.MLFLOW_PORTS[0]} is taken by another program, MLflow is on {part.url[17:]}"
        platform.wait_for_mlflow(workspace, part, 10)
    platform.down(workspace)
    again = platform.start_mlflow(workspace)
    assert (again.url, again.note) == (part.url, "")
    platform.down(workspace)
    with socket.create_server(("127.0.0.1", int(part.url[17:]))):
        moved = platform.start_mlflow(workspace)
        assert moved.note == f"port {part.url[17:]} is taken by another program, MLflow is now on {moved.url[17:]}"


@pytest.mark.usefixtures("mlflow")
def test_an_mlflow_that_nobody_wrote_down_is_not_left_behind(workspace: Workspace) -> None:
    platform.start_mlflow(workspace)
    lost = pid(workspace, "mlflow")
    (workspace.state / "platform.json").unlink()  # `wharf up` was killed right after it started it
    platform.start_mlflow(workspace)
    assert [p.pid for p in processes.owned(workspace.state, "mlflow")] == [pid(workspace, "mlflow")] != [lost]


def test_an_mlflow_that_ends_is_reported_with_its_last_words(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [sys.executable, "-S", "-c", "raise SystemExit('no space left on device')"]
    monkeypatch.setattr(platform, "_mlflow_command", lambda _folder, _port: command)
    part = platform.start_mlflow(workspace)
    with pytest.raises(Unavailable) as error:
        platform.wait_for_mlflow(workspace, part, 10)
    assert error.value.lines == ["MLflow ended: no space left on device"]
    assert "wharf logs mlflow" in error.value.tip


def test_an_mlflow_of_the_user_is_used_and_none_started(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{processes.free_port()}")
    part = platform.start_mlflow(workspace)
    assert (part.started, part.url) == (False, os.environ["MLFLOW_TRACKING_URI"])
    assert processes.owned(workspace.state, "mlflow") == []
    with pytest.raises(Unavailable, match="does not answer"):
        platform.wait_for_mlflow(workspace, part, 0.1)


def test_the_server_gets_no_mlflow_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setenv("MLFLOW_BACKEND_STORE_URI", "elsewhere")
    env = platform._mlflow_environment()
    assert {name for name in env if name.startswith("MLFLOW_")} == {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION",
        "MLFLOW_DISABLE_TELEMETRY",
    }


def test_the_agent_starts_once_serves_and_stops_with_its_services(workspace: Workspace) -> None:
    origin = Origin(workspace.state)
    origin.put("tumor", "dev", 1)
    assert start_agent(workspace).started
    url = platform.wait_healthy(workspace, "tumor", "dev", 1, timeout=20)
    assert call(f"{url}/predict")["version"] == 1
    assert not start_agent(workspace).started
    assert platform.down(workspace) == ["the agent", "1 service"]
    with pytest.raises(urllib.error.URLError):
        call(f"{url}/predict")
    assert platform.down(workspace) == []
    (application,) = applications(workspace)
    assert (application.sync, application.health) == ("Unknown", "Missing")
    assert start_agent(workspace).started
    assert platform.wait_healthy(workspace, "tumor", "dev", 1, timeout=20) == url


def test_a_killed_agent_is_replaced_and_its_services_live_on(workspace: Workspace) -> None:
    Origin(workspace.state).put("tumor", "dev", 1)
    start_agent(workspace)
    url = platform.wait_healthy(workspace, "tumor", "dev", timeout=20)
    service = applications(workspace)[0].pid
    os.kill(pid(workspace, "agent"), signal.SIGKILL)
    assert processes.wait_until(lambda: applications(workspace)[0].sync == "Unknown", 5)
    with pytest.raises(Unavailable, match="the agent does not run; `wharf up` starts it"):
        platform.wait_healthy(workspace, "tumor", "dev", timeout=5)
    assert start_agent(workspace).started
    assert platform.wait_healthy(workspace, "tumor", "dev", timeout=20) == url
    assert applications(workspace)[0].pid == service


def test_an_agent_that_hangs_is_replaced(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ci.status.FRESH_SECONDS", 3.0)
    Origin(workspace.state).put("tumor", "dev", 1)
    start_agent(workspace)
    hung = pid(workspace, "agent")
    psutil.Process(hung).suspend()
    assert processes.wait_until(lambda: applications(workspace)[0].sync == "Unknown", 10)
    assert "has not reported for" in applications(workspace)[0].message
    assert start_agent(workspace).started
    assert pid(workspace, "agent") != hung
    assert not psutil.pid_exists(hung) or psutil.Process(hung).status() == psutil.STATUS_ZOMBIE


def test_an_agent_that_ends_is_reported_with_its_last_words(workspace: Workspace) -> None:
    Origin(workspace.state)
    with pytest.raises(Unavailable) as error:
        platform.start_agent(workspace, "--launcher", "no.such:thing")
    assert error.value.lines == ["the agent ended: no launcher 'no.such:thing': No module named 'no'"]


def test_waiting_tells_how_things_stand_and_why_it_ended(workspace: Workspace) -> None:
    origin = Origin(workspace.state)
    origin.put("tumor", "dev", 1, FAKE_EXIT="3")
    start_agent(workspace)
    told: list[str] = []
    with pytest.raises(Unavailable) as error:
        platform.wait_healthy(workspace, "tumor", "dev", 1, timeout=3, watch=told.append)
    assert "tumor in dev is not Healthy after 3 seconds: OutOfSync, Degraded: version 1: " in error.value.lines[0]
    assert "ArtifactError: sha256 differs" in error.value.lines[0]
    assert any(line.startswith("Degraded") for line in told)
    with pytest.raises(Unavailable, match="the agent has not seen its release"):
        platform.wait_healthy(workspace, "digits", "dev", timeout=0.1)


def test_two_starts_at_once_make_one_of_each(workspace: Workspace, tmp_path: Path) -> None:
    Origin(workspace.state).put("tumor", "dev", 1)
    program = (
        "import pathlib, sys; from ci.local import platform; from ci.workspace import Workspace;"
        f"platform._mlflow_command = lambda _f, port: [sys.executable, '-S', '-c', {MLFLOW!r}, str(port)];"
        f"platform.MLFLOW_PORTS = [{processes.free_port()}];"
        "w = Workspace(pathlib.Path(sys.argv[1])); platform.start_mlflow(w);"
        f"platform.start_agent(w, '--launcher', {LAUNCHER!r}, '--first-port', '{processes.free_port()}')"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    both = [subprocess.Popen(command, cwd=ROOT) for _ in range(2)]
    assert [each.wait(30) for each in both] == [0, 0]
    assert len(processes.owned(workspace.state, "mlflow")) == 1
    assert len(processes.owned(workspace.state, "agent")) == 1


def test_down_stops_nothing_else(workspace: Workspace, tmp_path: Path) -> None:
    Origin(workspace.state).put("tumor", "dev", 1)
    start_agent(workspace)
    mark, _ = processes.start(
        [sys.executable, "-S", "-c", "import time; time.sleep(60)"],
        state=tmp_path / "other" / ".wharf",
        role="backend",
        log=tmp_path / "other.log",
        env=dict(os.environ),
    )
    try:
        known = platform.recorded(workspace)
        # A file from before a reboot: the id now belongs to a process of somebody else.
        known["mlflow"] = {"url": "http://127.0.0.1:1", "port": 1, "pid": mark.pid, "created": mark.created - 1000}
        (workspace.state / "platform.json").write_text(json.dumps(known))
        platform.down(workspace)
        assert processes.alive(mark)
    finally:
        processes.stop(mark)


def test_forget_removes_the_state_and_the_remote_that_is_ours(workspace: Workspace, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "remote", "add", "wharf", str(workspace.state / "origin.git"))
    workspace.state.mkdir()
    platform.forget(workspace)
    assert not workspace.state.exists()
    assert git(tmp_path, "remote") == ""
    git(tmp_path, "remote", "add", "wharf", "https://example.org/of/somebody.git")
    platform.forget(workspace)
    assert git(tmp_path, "remote") == "wharf"


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"mlflow": 3, "agent": "x"}'])
def test_a_broken_platform_file_is_as_none(workspace: Workspace, text: str) -> None:
    workspace.state.mkdir()
    (workspace.state / "platform.json").write_text(text)
    assert platform.down(workspace) == []


def test_wait_for_mlflow_takes_a_database_as_there(workspace: Workspace) -> None:
    platform.wait_for_mlflow(workspace, platform.Part("sqlite:///x.db", False), 0.1)


def test_a_server_that_answers_is_waited_for(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}/")
        platform.wait_for_mlflow(workspace, platform.start_mlflow(workspace), 5)
        server.shutdown()


def test_the_real_mlflow_starts_answers_and_stops(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "MLFLOW_PORTS", [processes.free_port()])
    part = platform.start_mlflow(workspace)
    platform.wait_for_mlflow(workspace, part)
    with urllib.request.urlopen(f"{part.url}/api/2.0/mlflow/experiments/search?max_results=1", timeout=20) as answer:
        assert json.loads(answer.read())["experiments"][0]["name"] == "Default"
    assert len(processes.owned(workspace.state, "mlflow")) <= 4, "no job consumers, one worker"
    assert platform.down(workspace) == ["MLflow"]
    assert not processes.answers(f"{part.url}/health", 0.5)
