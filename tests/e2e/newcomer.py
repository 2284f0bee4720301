"""Somebody with a clone of the repository, who types `wharf` and `git`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class User:
    """Somebody with a clone of the repository, who types `wharf` and `git`."""

    def __init__(self, clone: Path) -> None:
        self.clone = clone
        self.said = ""  # standard error of the last command
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("WHARF_", "MLFLOW_", "WANDB_", "PYTEST_"))},
            "PYTHONPATH": str(clone),
        }

    def wharf(self, *words: str, code: int = 0, seconds: float = 600) -> str:
        """Run a command, check its exit code, return its standard output."""
        done = subprocess.run(
            [sys.executable, "-m", "ci.cli", *words],
            cwd=self.clone,
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == code, f"wharf {' '.join(words)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        self.said = done.stderr
        return done.stdout

    def git(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            ["git", *words], cwd=self.clone, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == code, f"git {' '.join(words)}\n{done.stdout}\n{done.stderr}"
        self.said = done.stderr
        return done.stdout.strip()

    def status(self) -> dict[tuple[str, str], dict[str, Any]]:
        return {(row["model"], row["environment"]): row for row in json.loads(self.wharf("status", "--json"))}

    def wait_for(self, model: str, environment: str, version: int, seconds: float = 120) -> dict[str, Any]:
        """Wait until `version` is what runs, synced and healthy."""
        deadline, row = time.monotonic() + seconds, None
        while time.monotonic() < deadline:
            row = self.status().get((model, environment))
            if row and (row["version"], row["sync"], row["health"]) == (version, "Synced", "Healthy"):
                return row
            time.sleep(0.5)
        raise AssertionError(f"{model} in {environment} did not reach version {version}: {row}")


def newcomer(clone: Path) -> User:
    """Copy what git tracks here (with what is not committed yet) to `clone` as a repository of its own."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, tracked.split("\0")):
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    somebody = User(clone)
    for words in (
        ["init", "-q", "-b", "main"],
        ["config", "user.name", "Test User"],
        ["config", "user.email", "test@example.invalid"],
        ["add", "-A"],
        ["commit", "-q", "-m", "A clone"],
    ):
        somebody.git(*words)
    return somebody
