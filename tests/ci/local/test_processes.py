"""Processes, ports and locks of the local target, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ci.local import processes
from ci.local.processes import Mark

SLEEPER = [sys.executable, "-S", "-c", "import time; print('up', flush=True); time.sleep(60)"]
DEAF = [
    *(sys.executable, "-S", "-c"),
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)",
]
PARENT = [
    *(sys.executable, "-S", "-c"),
    "import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']).wait()",
]


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    processes.end(processes.owned(tmp_path, "test"), grace=0)


def begin(state: Path, command: list[str] = SLEEPER) -> Mark:
    mark, _ = processes.start(command, state=state, role="test", log=state / "test.log", env=dict(os.environ))
    return mark


def said(state: Path) -> bool:
    return processes.wait_until(lambda: "up" in (state / "test.log").read_text(), 10)


def test_a_started_process_is_known_by_its_mark_until_it_ends(state: Path) -> None:
    mark = begin(state)
    assert processes.alive(mark)
    assert not processes.alive(Mark(mark.pid, mark.created - 100)), "the same id, of an older process"
    assert processes.exit_code(mark) is None
    assert [p.pid for p in processes.owned(state, "test")] == [mark.pid]
    assert processes.owned(state, "other") == []
    assert processes.owned(state / "elsewhere", "test") == []
    assert processes.stop(mark)
    assert not processes.alive(mark)
    assert processes.exit_code(mark) == -signal.SIGTERM
    assert not processes.stop(mark), "nothing is left to stop"


def test_it_outlives_the_process_that_started_it(state: Path) -> None:
    program = (
        "import os, sys, pathlib; from ci.local import processes; state = pathlib.Path(sys.argv[1]);"
        f"print(processes.start({SLEEPER!r}, state=state, role='test', log=state / 'l', env=dict(os.environ))[0].pid)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(state)], capture_output=True, text=True, check=True)
    assert psutil.pid_exists(int(done.stdout))
    assert [p.pid for p in processes.owned(state, "test")] == [int(done.stdout)]


def test_a_process_that_ignores_sigterm_is_killed_after_the_grace(state: Path) -> None:
    mark = begin(state, DEAF)
    assert said(state)
    begun = time.monotonic()
    assert processes.stop(mark, grace=0.3)
    assert 0.25 < time.monotonic() - begun < 5
    assert processes.exit_code(mark) == -signal.SIGKILL


def test_a_stopped_process_hears_sigterm(state: Path) -> None:
    mark = begin(state)
    psutil.Process(mark.pid).suspend()
    assert processes.stop(mark, grace=10)
    assert processes.exit_code(mark) == -signal.SIGTERM


def test_children_of_a_killed_leader_are_found_and_stopped(state: Path) -> None:
    mark = begin(state, PARENT)
    assert processes.wait_until(lambda: len(processes.members(mark)) == 2, 10)
    os.kill(mark.pid, signal.SIGKILL)
    assert processes.wait_until(lambda: not processes.alive(mark), 5)
    (child,) = processes.members(mark)
    assert processes.stop(mark)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_the_session_of_somebody_else_with_the_same_id_is_left_alone(state: Path) -> None:
    mark = begin(state)
    assert processes.members(Mark(mark.pid, mark.created - 100)) == []
    assert not processes.stop(Mark(mark.pid, mark.created - 100))
    assert processes.alive(mark)


@pytest.mark.parametrize("raw", [None, {}, {"pid": 1}, {"pid": "1", "created": 2.0}, [1, 2], "x"])
def test_what_is_no_mark_is_none(raw: object) -> None:
    assert processes.mark_of(raw) is None
    assert not processes.alive(processes.mark_of(raw))


def test_a_taken_port_is_passed_over() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert not processes.port_is_free(taken)
        assert processes.free_port([taken]) != taken
    assert processes.free_port([taken]) == taken


def test_the_log_is_appended_to_and_put_aside_when_it_is_large(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = state / "test.log"
    log.write_text("before\n")
    mark, begins = processes.start(SLEEPER, state=state, role="test", log=log, env=dict(os.environ))
    assert begins == len("before\n")
    assert said(state)
    assert log.read_text() == "before\nup\n"
    assert processes.last_line(log, begins) == "up"
    assert processes.last_line(log, len("before\nup\n")) == ""
    processes.stop(mark)
    monkeypatch.setattr(processes, "_LOG_LIMIT", 5)
    _, begins = processes.start(SLEEPER, state=state, role="test", log=log, env=dict(os.environ))
    assert begins == 0
    assert (state / "test.1.log").read_text() == "before\nup\n"


def test_a_lock_is_held_by_one_process_and_let_go_when_it_is_killed(state: Path) -> None:
    program = (
        "import pathlib, sys, time; from ci.local.processes import locked\n"
        "with locked(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    path = state / "lock"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout and holder.stdout.readline() == b"held\n"
        told: list[bool] = []
        with processes.locked(path, wait=False, busy=lambda: told.append(True)) as mine:
            assert not mine
        assert told == [True]
        holder.kill()
    with processes.locked(path) as mine:
        assert mine


def test_who_waited_for_a_lock_that_was_removed_holds_it_against_the_next(state: Path) -> None:
    path = state / "lock"
    waiting, got, done = threading.Event(), threading.Event(), threading.Event()

    def wait() -> None:
        with processes.locked(path, busy=waiting.set):
            got.set()
            done.wait(10)

    with ThreadPoolExecutor() as pool:
        with processes.locked(path):
            ended = pool.submit(wait)
            assert waiting.wait(10)
            path.unlink()  # as `wharf down` does with the folder that the lock is in
        assert got.wait(10)
        with processes.locked(path, wait=False) as mine:
            assert not mine
        done.set()
        ended.result()


def test_answers_says_whether_a_url_gives_200() -> None:
    assert not processes.answers(f"http://127.0.0.1:{processes.free_port()}/health")
    assert not processes.answers("nonsense")
