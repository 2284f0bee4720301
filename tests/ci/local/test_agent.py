"""The agent as a process of its own, over a real git repository and real processes."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.local import processes
from ci.workspace import Workspace
from tests.ci.local.fakes import Hammer, Origin, RunningAgent, call

pytestmark = pytest.mark.slow  # processes of their own in every test


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def origin(workspace: Workspace) -> Origin:
    return Origin(workspace.state)


@pytest.fixture
def agent(workspace: Workspace, origin: Origin) -> Iterator[RunningAgent]:
    running = RunningAgent(workspace)
    yield running
    running.end()
    assert processes.owned(workspace.state, "agent", "backend") == []


def backends(workspace: Workspace) -> list[int]:
    return sorted(p.pid for p in processes.owned(workspace.state, "backend"))


def only_backend(workspace: Workspace, pid: int) -> bool:
    return processes.wait_until(lambda: backends(workspace) == [pid], 10)


def test_what_git_wants_runs_and_answers_at_its_address(agent: RunningAgent, origin: Origin) -> None:
    revision = origin.put("tumor", "dev", 1)
    agent.start()
    app = agent.healthy(1)
    assert call(f"{app['url']}/predict?a=%20b", b"12345") == {
        "version": 1,
        "pid": app["pid"],
        "path": "/predict?a=%20b",
        "bytes": 5,
    }
    assert agent.status()["revision"] == revision
    assert app["target"] == "local"
    assert app["url"].startswith("http://127.0.0.1:")


def test_a_new_version_takes_over_without_a_failed_request(
    agent: RunningAgent, origin: Origin, workspace: Workspace
) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    url = agent.healthy(1)["url"]
    with Hammer(f"{url}/predict") as hammer:
        hammer.until(1)
        for version in (2, 3):
            origin.put("tumor", "dev", version)
            agent.healthy(version)
            hammer.until(version)
    assert hammer.failures == []
    assert len(hammer.answers) > 50
    assert agent.app()["url"] == url
    assert only_backend(workspace, agent.app()["pid"])


def test_a_killed_process_is_replaced_without_a_failed_request(agent: RunningAgent, origin: Origin) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    before = agent.healthy(1)
    with Hammer(f"{before['url']}/predict") as hammer:
        hammer.until(1)
        os.kill(before["pid"], signal.SIGKILL)
        after = agent.until(lambda a: a["health"] == "Healthy" and a["pid"] not in (None, before["pid"]))
        answered = len(hammer.answers)
        assert processes.wait_until(lambda: len(hammer.answers) > answered + 10, 10)
    assert hammer.failures == []
    assert (after["restarts"], after["url"], after["sync"]) == (1, before["url"], "Synced")
    assert (
        "dev/tumor: Synced, Progressing: restarting: its process was killed by signal 9"
        in (agent.workspace.logs / "agent.log").read_text()
    )


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"FAKE_EXIT": "3"}, "version 2: its process ended with code 3: ArtifactError: sha256 differs"),
        ({"FAKE_READY": "no"}, "version 2: not Ready after 5 seconds: 503"),
    ],
)
def test_a_version_that_does_not_become_ready_never_takes_over(
    agent: RunningAgent, origin: Origin, workspace: Workspace, env: dict[str, str], reason: str
) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    url = agent.healthy(1)["url"]
    with Hammer(f"{url}/predict", kept=1, fresh=1) as hammer:
        origin.put("tumor", "dev", 2, **env)
        app = agent.until(lambda a: a["health"] == "Degraded")
        assert app["message"].startswith(reason)
        assert app["message"].endswith("version 1 goes on serving")
        assert (app["version"], app["desired"], app["sync"]) == (1, 2, "OutOfSync")
        origin.put("tumor", "dev", 1)  # the rollback
        agent.healthy(1)
    assert hammer.failures == []
    assert set(hammer.answers) == {1}
    assert only_backend(workspace, agent.app()["pid"])


def test_the_old_version_is_healed_while_the_new_one_fails(agent: RunningAgent, origin: Origin) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    before = agent.healthy(1)
    origin.put("tumor", "dev", 2, FAKE_READY="no")
    agent.until(lambda a: a["health"] == "Progressing" and a["desired"] == 2)
    os.kill(before["pid"], signal.SIGKILL)
    assert call(f"{before['url']}/predict")["version"] == 1


def test_an_image_that_is_not_there_is_degraded_until_git_names_another(agent: RunningAgent, origin: Origin) -> None:
    origin.put("tumor", "dev", 1, image="wharf.local/absent@sha256:00")
    agent.start()
    app = agent.until(lambda a: a["health"] == "Degraded")
    assert app["message"] == "version 1: no bento for wharf.local/absent@sha256:00"
    with pytest.raises(urllib.error.HTTPError) as refused:
        call(f"{app['url']}/predict")
    assert (refused.value.code, refused.value.headers["Retry-After"]) == (503, "2")
    origin.put("tumor", "dev", 2)
    agent.healthy(2)


def test_what_is_removed_from_git_is_stopped_and_comes_back_at_the_same_address(
    agent: RunningAgent, origin: Origin, workspace: Workspace
) -> None:
    origin.put("tumor", "dev", 1)
    origin.put("digits", "dev", 4)
    agent.start()
    url = agent.healthy(1)["url"]
    other = agent.healthy(4, model="digits")
    assert other["url"] != url
    origin.remove("tumor", "dev")
    assert processes.wait_until(lambda: len(agent.status()["applications"]) == 1, 10)
    assert only_backend(workspace, other["pid"])
    with pytest.raises(urllib.error.URLError):
        call(f"{url}/predict")
    origin.put("tumor", "dev", 1)
    assert agent.healthy(1)["url"] == url
    assert agent.app(model="digits")["pid"] == other["pid"]


def test_manifests_that_cannot_be_followed_leave_what_runs_alone(agent: RunningAgent, origin: Origin) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    before = agent.healthy(1)
    origin.files["gitops/rendered/dev/tumor/deployment.yaml"] = "kind: [broken"
    origin.commit()
    app = agent.until(lambda a: a["sync"] == "Unknown")
    assert "gitops/rendered/dev/tumor" in app["message"]
    assert app["pid"] == before["pid"]
    assert call(f"{app['url']}/predict")["version"] == 1


def test_an_origin_that_is_gone_leaves_what_runs_alone(agent: RunningAgent, origin: Origin) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    agent.healthy(1)
    hidden = origin.path.rename(origin.path.with_name("hidden.git"))
    app = agent.until(lambda a: a["sync"] == "Unknown")
    assert "origin.git has no readable branch main" in app["message"]
    assert call(f"{app['url']}/predict")["version"] == 1
    hidden.rename(origin.path)
    agent.healthy(1)


def test_a_killed_agent_leaves_services_running_and_the_next_one_takes_them_over(
    agent: RunningAgent, origin: Origin, workspace: Workspace
) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    before = agent.healthy(1)
    agent.kill()
    assert backends(workspace) == [before["pid"]]
    origin.put("digits", "dev", 1)
    agent.start()
    agent.healthy(1, model="digits")
    after = agent.healthy(1)
    assert (after["pid"], after["url"]) == (before["pid"], before["url"])
    os.kill(after["pid"], signal.SIGKILL)  # no child of this agent, and healed all the same
    agent.until(lambda a: a["health"] == "Healthy" and a["pid"] not in (None, before["pid"]))


def test_an_agent_killed_during_a_rollout_leaves_nothing_behind(
    agent: RunningAgent, origin: Origin, workspace: Workspace
) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    first = agent.healthy(1)
    origin.put("tumor", "dev", 2, FAKE_READY="no")
    assert processes.wait_until(lambda: len(backends(workspace)) == 2, 10)
    agent.kill()
    origin.put("tumor", "dev", 1)
    agent.start()
    assert agent.healthy(1)["pid"] == first["pid"]
    assert only_backend(workspace, first["pid"])


def test_a_taken_port_gives_another_address_and_says_so(agent: RunningAgent, origin: Origin) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    port = int(agent.healthy(1)["url"].rsplit(":", 1)[1])
    agent.kill()
    assert processes.wait_until(lambda: processes.port_is_free(port), 5), "the system frees it a moment later"
    with socket.create_server(("127.0.0.1", port)):
        agent.start()
        app = agent.until(lambda a: a["health"] == "Healthy" and a["url"] != f"http://127.0.0.1:{port}")
        assert f"port {port} is taken by another program" in app["message"]
        assert call(f"{app['url']}/predict")["version"] == 1


def test_a_second_agent_gives_way(agent: RunningAgent, origin: Origin, workspace: Workspace) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    agent.healthy(1)
    second = RunningAgent(workspace)
    second.start()
    assert second.mark and processes.wait_until(lambda: processes.exit_code(second.mark) == 4, 10)
    assert "already runs" in (workspace.logs / "agent.log").read_text()


def test_sigterm_ends_the_agent_and_leaves_the_services(
    agent: RunningAgent, origin: Origin, workspace: Workspace
) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    pid = agent.healthy(1)["pid"]
    assert agent.mark
    os.kill(agent.mark.pid, signal.SIGTERM)
    assert processes.wait_until(lambda: processes.exit_code(agent.mark) == 0, 10)
    assert backends(workspace) == [pid]


def test_removing_the_state_ends_the_agent_and_its_services(
    agent: RunningAgent, origin: Origin, workspace: Workspace
) -> None:
    origin.put("tumor", "dev", 1)
    agent.start()
    agent.healthy(1)
    shutil.rmtree(workspace.state)
    assert processes.wait_until(lambda: not processes.alive(agent.mark) and backends(workspace) == [], 15)
