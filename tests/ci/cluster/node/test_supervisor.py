"""The supervisor with real processes: order, restarts, adoption, an end in order, and logs that stay small."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ci.cluster.node import parts, supervisor
from ci.cluster.node.parts import Part, Probe
from ci.local import processes

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[4]
WAIT_S = 15.0


class Stage:
    """A supervisor in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.state, self.run, self.file = folder / "state", folder / "run", folder / "parts.json"
        self.children: list[subprocess.Popen[bytes]] = []

    def begin(self) -> subprocess.Popen[bytes]:
        options = [f"--parts={self.file}", f"--state={self.state}", f"--run={self.run}"]
        command = [sys.executable, "-m", "ci.cluster.node.supervisor", *options]
        child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.children.append(child)
        return child

    def status(self) -> dict[str, Any]:
        try:
            return json.loads((self.run / "supervisor-status.json").read_text())
        except (OSError, ValueError):
            return {"generation": "", "parts": {}}

    def wait_ready(self, generation: str) -> dict[str, Any]:
        """Wait until all parts of this writing are ready; return them."""

        def settled() -> bool:
            found = self.status()
            return found["generation"] == generation and all(part["ready"] for part in found["parts"].values())

        assert processes.wait_until(settled, WAIT_S, 0.05), self.status()
        return self.status()["parts"]

    def end(self) -> None:
        for child in self.children:
            child.kill()
            child.communicate()
        for name in ("first", "second"):
            processes.end(processes.owned(self.state, name), 1.0)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    found = Stage(tmp_path)
    yield found
    found.end()


def _part(name: str, script: str = "sleep 100", **more: Any) -> Part:
    return Part(name, ("sh", "-c", f"exec {script}"), {"PATH": os.environ["PATH"]}, **more)


def _wait_restarted(stage: Stage, name: str, restarts: int) -> int:
    def settled() -> bool:
        part = stage.status()["parts"][name]
        return part["restarts"] >= restarts and part["ready"]

    assert processes.wait_until(settled, WAIT_S, 0.05), stage.status()
    return stage.status()["parts"][name]["pid"]


def test_what_is_killed_starts_again_and_the_others_stay(stage: Stage) -> None:
    generation = parts.write(stage.file, [_part("first"), _part("second", after=("first",))])
    stage.begin()
    before = stage.wait_ready(generation)
    os.kill(before["first"]["pid"], signal.SIGKILL)
    again = _wait_restarted(stage, "first", 1)
    assert again != before["first"]["pid"]
    assert psutil.pid_exists(again)
    assert stage.status()["parts"]["second"]["pid"] == before["second"]["pid"]


def test_a_part_waits_until_the_one_before_it_is_ready(stage: Stage) -> None:
    socket = stage.state.parent / "s"
    parts.write(stage.file, [_part("first", probe=Probe(unix=str(socket))), _part("second", after=("first",))])
    stage.begin()
    assert processes.wait_until(lambda: bool(stage.status()["parts"].get("first", {}).get("pid")), WAIT_S, 0.05)
    time.sleep(0.6)
    assert stage.status()["parts"]["second"]["pid"] is None
    import socket as sockets

    with sockets.socket(sockets.AF_UNIX) as server:
        server.bind(str(socket))
        server.listen()
        assert processes.wait_until(lambda: bool(stage.status()["parts"]["second"]["pid"]), WAIT_S, 0.05)


def test_after_its_own_death_the_next_one_adopts_what_runs_and_starts_what_does_not(stage: Stage) -> None:
    generation = parts.write(stage.file, [_part("first"), _part("second")])
    one = stage.begin()
    before = stage.wait_ready(generation)
    one.kill()
    one.wait()
    os.kill(before["second"]["pid"], signal.SIGKILL)
    stage.begin()
    generation = parts.write(stage.file, [_part("first"), _part("second")])
    assert processes.wait_until(lambda: (stage.run / "supervisor.json").exists(), WAIT_S)
    after = _after(stage, before["second"]["pid"])
    assert after["first"]["pid"] == before["first"]["pid"]


def _after(stage: Stage, dead: int) -> dict[str, Any]:
    """Wait until the part that had the process `dead` has another one."""
    settled = lambda: stage.status()["parts"]["second"]["pid"] not in (None, dead)  # noqa: E731
    assert processes.wait_until(settled, WAIT_S, 0.05), stage.status()
    return stage.status()["parts"]


def test_a_process_whose_record_is_lost_is_replaced(stage: Stage) -> None:
    generation = parts.write(stage.file, [_part("first")])
    one = stage.begin()
    lost = stage.wait_ready(generation)["first"]["pid"]
    one.kill()
    one.wait()
    (stage.run / "parts" / "first.json").unlink()
    (stage.run / "supervisor-status.json").unlink()
    stage.begin()
    now = stage.wait_ready(generation)["first"]["pid"]
    assert now != lost
    assert not psutil.pid_exists(lost) or psutil.Process(lost).status() == psutil.STATUS_ZOMBIE


def test_what_changed_is_started_anew_and_what_is_gone_is_ended(stage: Stage, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text("a")
    generation = parts.write(stage.file, [_part("first", files=(str(config),)), _part("second")])
    child = stage.begin()
    before = stage.wait_ready(generation)
    config.write_text("b")
    generation = parts.write(stage.file, [_part("first", files=(str(config),))])
    child.send_signal(signal.SIGHUP)
    after = stage.wait_ready(generation)
    assert set(after) == {"first"}
    assert after["first"]["pid"] != before["first"]["pid"]
    assert processes.owned(stage.state, "second") == []


def test_it_ends_what_came_last_first_and_leaves_what_the_parts_started(stage: Stage) -> None:
    held = stage.state.parent / "held"
    script = f"sh -c 'setsid sleep 100 & echo $! > {held}; exec sleep 100'"
    generation = parts.write(stage.file, [_part("first", script), _part("second", after=("first",))])
    child = stage.begin()
    pids = {name: part["pid"] for name, part in stage.wait_ready(generation).items()}
    assert processes.wait_until(lambda: held.is_file() and held.read_text().strip() != "", WAIT_S)
    kept = psutil.Process(int(held.read_text()))
    try:
        child.terminate()
        said = child.communicate(timeout=WAIT_S)[0].decode()
        assert child.returncode == 0
        assert said.index(f"second: ending process {pids['second']}") < said.index(
            f"first: ending process {pids['first']}"
        )
        assert kept.is_running()
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            kept.kill()
    assert not (stage.run / "supervisor.json").exists()


def test_there_is_only_one(stage: Stage) -> None:
    generation = parts.write(stage.file, [_part("first")])
    stage.begin()
    stage.wait_ready(generation)
    second = stage.begin()
    said = second.communicate(timeout=WAIT_S)[0].decode()
    assert (second.returncode, "another supervisor" in said) == (3, True)


def test_a_part_that_cannot_start_is_tried_ever_more_slowly(stage: Stage) -> None:
    parts.write(stage.file, [_part("first", "false")])
    child = stage.begin()
    assert processes.wait_until(lambda: stage.status()["parts"].get("first", {}).get("restarts", 0) >= 3, WAIT_S)
    child.terminate()
    said = child.communicate(timeout=WAIT_S)[0].decode()
    waits = [line.rsplit(" ", 2)[-2] for line in said.splitlines() if "again in" in line]
    assert waits[:3] == ["0.2", "0.5", "1.0"]


def test_a_log_stays_small_and_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "part.log"
    with log.open("ab") as writer:
        writer.write(b"x" * 2000)
        writer.flush()
        assert supervisor.bound_log(log, 1000)
        writer.write(b"new")
        writer.flush()
    assert log.read_bytes() == b"new"
    assert (tmp_path / "part.1.log").stat().st_size == 2000
    assert not supervisor.bound_log(log, 1000)
