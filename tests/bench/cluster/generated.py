"""Generated models and their releases: many, small, and of versions that only a double of the registry knows.

No machine runs a thousand models at once, so the environments ask for a node that is not there: every object is
made, every pod is Pending. What is measured is how fast git becomes objects (Synced), not whether they are Healthy.
"""

from __future__ import annotations

import multiprocessing
import re
import shutil
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ci.registry import VersionFacts
from ci.release import Release, path_of
from tests.bench.bench_gitops import put, serve
from tests.ci.gitops_tree import add_model, pin
from tests.e2e.newcomer import User

FIRST = "dev"
TEAMS = 20
_NOWHERE = "node_selector: {modelwharf.io/bench: nowhere}"
Facts = dict[tuple[str, int], VersionFacts]


def names(count: int) -> list[str]:
    return [f"m{number:05d}" for number in range(count)]


def team_of(name: str, teams: int = TEAMS) -> str:
    return f"team{int(name[1:]) % teams:02d}"


@contextmanager
def registry(models: Sequence[str]) -> Generator[tuple[str, Facts]]:
    """Give the address of a registry that knows three versions of every model, and its facts."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(list(models), theirs), daemon=True)
    server.start()
    try:
        url, facts = ours.recv()
        yield url, facts
    finally:
        server.terminate()
        server.join()


def write_models(root: Path, models: Sequence[str], teams: int = TEAMS) -> None:
    """Write the models in place of those that are there, and let no pod of any environment be scheduled."""
    for folder in (root / "models", root / "bentos"):
        for path in folder.glob("*/"):
            if (path / "model.yaml").is_file() or (path / "service.py").is_file():
                shutil.rmtree(path)
    for name in models:
        add_model(root, name)
        contract = root / f"models/{name}/model.yaml"
        text = contract.read_text()
        assert text.count("team: diagnostics\n") == 1
        contract.write_text(text.replace("team: diagnostics\n", f"team: {team_of(name, teams)}\n"))
    for path in (root / "gitops/environments").glob("*.yaml"):
        # Without an autoscaler: where there is no metrics API, each asks in vain every 15 seconds.
        text = re.sub(r"^replicas: .*$", "replicas: {min: 1, max: 1}", path.read_text(), flags=re.MULTILINE)
        text = re.sub(r"^pod_disruption: .*$", "pod_disruption: {max_unavailable: 1}", text, flags=re.MULTILINE)
        path.write_text(text if _NOWHERE in text else f"{text.rstrip()}\n{_NOWHERE}\n")


@dataclass(frozen=True)
class Releases:
    """Writes releases of the first environment into a clone, and pushes them."""

    user: User
    models: list[str]
    url: str
    facts: Facts

    @property
    def root(self) -> Path:
        return self.user.clone

    def write(self, models: Sequence[str], version: int, *, commit: bool = True) -> None:
        """Write and render one version of the models and commit both, as one release of all of them."""
        pins: list[Release] = [pin(self.facts[name, version], FIRST) for name in models]
        put(self.root, pins)
        self.user.wharf("render")
        if commit:
            self._commit(f"Release version {version} of {len(models)} models", [(name, version) for name in models])

    def remove(self, models: Sequence[str], version: int) -> None:
        """Remove the releases of the models and commit that."""
        for name in models:
            (self.root / path_of(FIRST, name)).unlink()
            shutil.rmtree(self.root / f"gitops/rendered/{FIRST}/{name}")
        self._commit(f"Remove {len(models)} releases", [(name, version) for name in models], "Wharf-Action: withdraw")

    def _commit(self, subject: str, pins: Sequence[tuple[str, int]], *trailers: str) -> None:
        lines = [f"Wharf-Release: {FIRST}/{name}@{version}" for name, version in pins]
        message = self.root / ".git" / "BENCH_MESSAGE"
        message.write_text("\n".join([subject, "", *lines, *trailers, ""]))
        self.user.git("add", "--all", "gitops")
        self.user.git("commit", "--quiet", "--file", str(message))

    def push(self) -> str:
        """Push what was committed; the origin's hook judges it by this registry. Return the commit."""
        environment = {**self.user.environment, "MLFLOW_TRACKING_URI": self.url}
        command = ["git", "push", "--quiet", "wharf", "HEAD:main"]
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"git push: {done.stderr[-2000:]}"
        return self.user.git("rev-parse", "HEAD")


def cpu_seconds() -> dict[str, float]:
    """Return the processor seconds of each program that runs on this machine so far, by its name."""
    import psutil

    found: dict[str, float] = {}
    for process in psutil.process_iter():
        try:
            words, used = process.cmdline(), process.cpu_times()
        except psutil.Error:
            continue
        if words:
            name = Path(words[0].partition(" ")[0].rstrip(":")).name
            found[name] = found.get(name, 0.0) + used.user + used.system
    return found


def used(before: dict[str, float], after: dict[str, float], most: int = 6) -> str:
    """Return what used the processors meanwhile, in words."""
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    top: list[tuple[str, Any]] = sorted(grown.items(), key=lambda each: -each[1])[:most]
    return ", ".join(f"{name} {seconds:.0f} s" for name, seconds in top if seconds >= 1)
