"""What every test can use.

`workspace`   a small git repository of its own with the models, bentos and environments of this one
`mlflow_uri`  a real MLflow server over HTTP, one for the whole session: runs of other tests are on it too
`mlflow_db`   an empty tracking database of the test's own, without a server: quick, and nobody else writes to it
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ci.shell import git
from ci.workspace import Workspace
from tests.mlflow_server import ROOT, shared_database, shared_server

# One thread a process: the tests run side by side on few cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# The settings of whoever runs the tests must not decide what they do.
for _name in [name for name in os.environ if name.startswith(("GIT_", "WANDB_", "WHARF_"))]:
    del os.environ[_name]
os.environ.pop("MLFLOW_TRACKING_URI", None)

# What a workspace needs; machine-written files (releases, rendered) start empty.
_TREE = ["models", "bentos", "gitops", "pyproject.toml", "uv.lock", ".gitignore"]


def _shared_folder(factory: pytest.TempPathFactory) -> Path:
    """Return the folder that all xdist workers of this session share."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def _session_owner() -> int:
    """Return the process whose end is the end of the session: xdist's controller, or this one."""
    return os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()


@pytest.fixture(scope="session")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Address of the session's MLflow server."""
    return shared_server(_shared_folder(tmp_path_factory), _session_owner())


@pytest.fixture
def mlflow_db(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of an empty tracking database of this test; MLFLOW_TRACKING_URI is set to it."""
    database = tmp_path / "mlflow.db"
    shutil.copy(shared_database(_shared_folder(tmp_path_factory)), database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    return f"sqlite:///{database}"


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A committed copy of this checkout's models, bentos and settings, with a `.wharf` of its own."""
    return make_workspace(tmp_path / "repository")


def make_workspace(root: Path) -> Workspace:
    """Make the repository that the fixture `workspace` gives, at `root`."""
    root.mkdir()
    ignored = shutil.ignore_patterns("__pycache__", "releases", "rendered", "*.tmp", ".wharf")
    for name in _TREE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, root / name)
    (root / "gitops").mkdir(exist_ok=True)
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "config", "user.name", "Tests")
    git(root, "config", "user.email", "tests@localhost")
    git(root, "config", "gc.auto", "0")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "--message=A repository for one test")
    return Workspace(root)
