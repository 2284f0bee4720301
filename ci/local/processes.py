"""Processes that outlive the command that started them: start, recognise, stop, ports, locks.

A process is known by its id and the time it was created, so that an id which the system gave away again is never
mistaken for ours. Each is the leader of its own session; whatever it starts stays in that session, and an environment
variable names the workspace it belongs to, so that nothing is lost sight of even when a leader died first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

HOST = "127.0.0.1"
OWNER = "WHARF_STATE"  # names the .wharf folder that a process was started for
ROLE = "WHARF_ROLE"  # names what it is there: mlflow, agent or backend
_CLOCK_SLACK = 2.0  # seconds: the creation time is counted from a boot time that moves when the clock is set
_LOG_LIMIT = 10 * 1024 * 1024


@dataclass(frozen=True)
class Mark:
    """What identifies a process: its id and when it was created (seconds since 1970)."""

    pid: int
    created: float


_children: dict[int, tuple[Mark, subprocess.Popen[bytes]]] = {}  # by id; a newer child may get the id of an ended one


def mark_of(raw: object) -> Mark | None:
    """Read a mark from what `json.loads` gave; None when there is none in it."""
    match raw:
        case {"pid": int(pid), "created": float() | int() as created}:
            return Mark(pid, float(created))
        case _:
            return None


def start(
    command: Sequence[str],
    *,
    state: Path,
    role: str,
    log: Path,
    env: Mapping[str, str],
    cwd: Path | None = None,
) -> tuple[Mark, int]:
    """Start `command` as the leader of a session of its own; it survives this process.

    `env` is its whole environment. Its output is appended to `log`. Returns its mark and where its output begins in
    `log`. Raises OSError when it cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.is_file() and log.stat().st_size > _LOG_LIMIT:
        log.replace(log.with_suffix(".1.log"))
    with log.open("ab") as output:
        begins = output.tell()
        child = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**env, OWNER: str(state), ROLE: role},
            cwd=cwd,
            start_new_session=True,
        )
    try:
        mark = Mark(child.pid, psutil.Process(child.pid).create_time())
    except psutil.NoSuchProcess:
        mark = Mark(child.pid, time.time())
    _children[child.pid] = mark, child
    return mark, begins


def _child(pid: int, created: float) -> subprocess.Popen[bytes] | None:
    mark, child = _children.get(pid, (None, None))
    return child if mark and abs(mark.created - created) < _CLOCK_SLACK else None


def exit_code(mark: Mark) -> int | None:
    """Return the exit code of an ended process (negative: the signal), None while it runs or if it was not ours."""
    child = _child(mark.pid, mark.created)
    return child.poll() if child else None


def alive(mark: Mark | None) -> bool:
    """Tell whether exactly this process still runs; a zombie does not."""
    if mark is None:
        return False
    if exit_code(mark) is not None:
        return False
    try:
        process = psutil.Process(mark.pid)
        return abs(process.create_time() - mark.created) < _CLOCK_SLACK and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def members(mark: Mark) -> list[psutil.Process]:
    """Return what still runs of the session that `mark` leads or led, without zombies.

    The system does not give away the id of a session that has members, so they are ours even if the leader is gone.
    """
    found: list[psutil.Process] = []
    for pid in psutil.pids():
        try:
            process = psutil.Process(pid)
            if (
                os.getsid(pid) == mark.pid
                and process.create_time() > mark.created - _CLOCK_SLACK
                and process.status() != psutil.STATUS_ZOMBIE
            ):
                found.append(process)
        except (psutil.Error, ProcessLookupError, PermissionError):
            continue
    if found and any(p.pid == mark.pid for p in found) and not alive(mark):
        return []  # the id was given to a session of somebody else
    return found


def owned(state: Path, *roles: str) -> list[psutil.Process]:
    """Return the processes in `roles` of the workspace with this state folder, this process left out."""
    found: list[psutil.Process] = []
    for pid in psutil.pids():  # `process_iter` keeps processes whose id was given away since
        try:
            process = psutil.Process(pid)
            if pid != os.getpid():
                env = process.environ()
                if env.get(OWNER) == str(state) and env.get(ROLE) in roles:
                    found.append(process)
        except (psutil.Error, OSError):
            continue  # ended meanwhile, or not ours to look at
    return found


def stop(mark: Mark, grace: float = 10.0) -> bool:
    """End the whole session of `mark`: SIGTERM, then SIGKILL after `grace` seconds. Tell whether anything ran."""
    return end(members(mark), grace)


def end(processes: Iterable[psutil.Process], grace: float = 10.0) -> bool:
    """End `processes`: SIGTERM, then SIGKILL after `grace` seconds. Tell whether there were any."""
    running = list(processes)
    for process in running:
        _send(process, signal.SIGTERM)
    left = _wait(running, grace)
    for process in left:
        _send(process, signal.SIGKILL)
    _wait(left, 5.0)
    return bool(running)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
        if number is signal.SIGTERM:
            process.send_signal(signal.SIGCONT)  # a stopped process would not hear it
    except psutil.NoSuchProcess:
        pass


def _wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until `processes` have ended and return those that have not."""
    deadline = time.monotonic() + seconds
    while processes and time.monotonic() < deadline:
        processes = [p for p in processes if _runs(p)]
        if processes:
            time.sleep(0.05)
    return processes


def _runs(process: psutil.Process) -> bool:
    try:
        if child := _child(process.pid, process.create_time()):
            child.poll()  # collects it, so that no zombie is left
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def port_is_free(port: int) -> bool:
    """Tell whether nothing listens on `port` of the loopback address (or of all addresses)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the waiting ends of old connections do not count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
        return True


def free_port(wanted: Iterable[int] = ()) -> int:
    """Return the first free port of `wanted`, else one that the system picks."""
    for port in wanted:
        if port_is_free(port):
            return port
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def answers(url: str, timeout: float = 2.0) -> bool:
    """Tell whether `GET url` answers 200 within `timeout` seconds; proxies of the environment are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=timeout) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def wait_until(condition: Callable[[], bool], timeout: float, pause: float = 0.1) -> bool:
    """Ask `condition` until it is true or `timeout` seconds are over; return its last answer."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause)
    return True


@contextmanager
def locked(path: Path, *, wait: bool = True, busy: Callable[[], Any] | None = None) -> Generator[bool]:
    """Hold the lock file `path`; the system lets go of it when this process ends, however it ends.

    When another process holds it: call `busy`, then wait, or with `wait=False` yield False without the lock.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if busy:
                    busy()
                if not wait:
                    yield False
                    return
                fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever held it may have removed the file (`wharf down` does): the next one would lock another file.
            if _is_at(path, handle.fileno()):
                yield True
                return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def last_line(log: Path, begins: int = 0) -> str:
    """Return the last line with text that `log` holds behind `begins`, at most 300 characters."""
    try:
        with log.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(begins, size - 8192))
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
