"""One real MLflow server for a whole test session, shared by all xdist workers.

A server takes 16 s to start and 450 MB, so the first worker that needs it starts it under a file lock, and the
others find its address in a file. A small watchdog process, run from this module, holds the server and stops it when
the pytest process that owns the session is gone: no test run leaves a server behind, not even a killed one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


def free_port() -> int:
    """Return a TCP port of the loopback interface that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def locked(path: Path) -> Generator[None]:
    """Hold an exclusive lock on the file `path` while the block runs; other processes wait."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def shared_server(folder: Path, owner: int) -> str:
    """Return the address of the session's server; start it in `folder` if nobody has yet.

    `owner` is the process id of the pytest process whose end stops the server.
    """
    address = folder / "mlflow.address"
    with locked(folder / "mlflow.lock"):
        if not address.exists():
            url = _start(folder / "mlflow-server", owner)
            address.write_text(url)
    return address.read_text()


def shared_database(folder: Path) -> Path:
    """Return a migrated, empty SQLite tracking database to copy (making one takes 11 s, copying it none)."""
    database = folder / "mlflow-empty.db"
    with locked(folder / "mlflow-empty.lock"):
        if not database.exists():
            draft = folder / "mlflow-draft.db"
            code = "import sys; from mlflow import MlflowClient; MlflowClient(sys.argv[1]).search_experiments()"
            subprocess.run([sys.executable, "-c", code, f"sqlite:///{draft}"], check=True, capture_output=True)
            draft.rename(database)
    return database


def _start(folder: Path, owner: int) -> str:
    folder.mkdir()
    port = free_port()
    with (folder / "log.txt").open("w") as log:
        watchdog = subprocess.Popen(
            [sys.executable, "-m", "tests.mlflow_server", str(folder), str(port), str(owner)],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    _wait_until(lambda: _answers(f"{url}/health"), lambda: watchdog.poll() is None, folder / "log.txt")
    watchdog.returncode = 0  # it outlives this process by design: no warning that nobody waited for it
    return url


def _wait_until(ready: Callable[[], bool], alive: Callable[[], bool], log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if not alive() or time.monotonic() > deadline:
            raise RuntimeError(f"the test MLflow server did not start:\n{log.read_text()[-3000:]}")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _hold(folder: Path, port: int, owner: int) -> None:
    """Run the server as a child until the process `owner` is gone."""
    mlflow = shutil.which("mlflow", path=str(Path(sys.executable).parent)) or "mlflow"
    server = subprocess.Popen(
        [
            *[mlflow, "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)],
            *["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"],
        ],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
        cwd=folder,
    )
    while server.poll() is None and _alive(owner):
        time.sleep(0.5)
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()


if __name__ == "__main__":
    _hold(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
