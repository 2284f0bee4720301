"""Drift check on 100,000 rows by 20 features: seconds, and ratios to a scipy loop and to evidently's preset.

Run with `python -m tests.bench.bench_drift`. Three rounds, interleaved, in one run; medians. evidently cannot live in
this environment (it fails with pandas 3), so uv makes a throwaway one for it, in a process of its own that times only
the preset's run, not its imports; without uv or an index that column is said to be missing.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats

from ci.live.drift import Feature, compare
from ci.live.prediction_log import Schema, read

ROWS, FEATURES, ROUNDS = 100_000, 20, 3

_EVIDENTLY = """
import sys, time
import numpy as np, pandas as pd
import evidently
from evidently import Report
from evidently.presets import DataDriftPreset
both = np.load(sys.argv[1])
names = [f"f{i}" for i in range(both["reference"].shape[1])]
reference, current = pd.DataFrame(both["reference"], columns=names), pd.DataFrame(both["current"], columns=names)
print("ready", evidently.__version__, flush=True)
for _ in sys.stdin:
    begun = time.perf_counter()
    found = Report([DataDriftPreset()]).run(current, reference)
    found.dict()
    print(time.perf_counter() - begun, flush=True)
"""


def data() -> tuple[np.ndarray, np.ndarray]:
    """Return reference and current, float64 [ROWS, FEATURES]; every second feature is shifted a little."""
    rng = np.random.default_rng(0)
    reference = rng.gamma(3.0, 1.0, (ROWS, FEATURES))
    return reference, rng.gamma(3.0, 1.0, (ROWS, FEATURES)) * np.where(np.arange(FEATURES) % 2, 1.1, 1.0)


def ours(method: str, reference: np.ndarray, current: np.ndarray) -> Callable[[], object]:
    features = [Feature(f"f{i}", method, 0.25) for i in range(FEATURES)]  # type: ignore[arg-type]
    return lambda: compare(reference, current, features, min_rows=200)


def scipy_loop(reference: np.ndarray, current: np.ndarray) -> object:
    return [scipy.stats.ks_2samp(reference[:, i], current[:, i], method="asymp") for i in range(FEATURES)]


def seconds(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


class Evidently:
    """A process that runs evidently's preset on the same data when it is asked to."""

    def __init__(self, folder: Path, reference: np.ndarray, current: np.ndarray) -> None:
        np.savez(folder / "data.npz", reference=reference, current=current)
        (folder / "preset.py").write_text(_EVIDENTLY)
        wanted = ["--with", "evidently>=0.7", "--with", "pandas<3", "--python", "3.11"]
        command = ["uv", "run", "--isolated", "--no-project", "--quiet", *wanted, "preset.py", "data.npz"]
        environment = {**os.environ, "DO_NOT_TRACK": "1"}
        environment.pop("VIRTUAL_ENV", None)
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=(folder / "stderr").open("w"),
        )  # fmt: skip
        self.version = self._line().removeprefix("ready ")
        if not self.version:
            self.close()
            said = (folder / "stderr").read_text().strip().splitlines()
            raise RuntimeError(said[-1] if said else "it ended without a word")

    def _line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def run(self) -> float:
        assert self.process.stdin
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(60)


def write_log(folder: Path, current: np.ndarray) -> None:
    """Write the rows as the service logs them, ten to a request."""
    with (folder / "2026-01-01.jsonl").open("w") as file:
        for i in range(0, ROWS, 10):
            line = {"ts": 1767225600 + i / 1000, "id": f"r{i}", "model": "m", "version": 1, "status": 200, "ms": 0.5}
            line |= {"rows": current[i : i + 10].tolist(), "predictions": ["a"] * 10, "scores": [0.5] * 10}
            file.write(json.dumps(line) + "\n")


def main() -> None:
    """Print the medians and ratios."""
    reference, current = data()
    with tempfile.TemporaryDirectory(prefix="wharf-bench-") as name:
        folder = Path(name)
        rival: Evidently | None = None
        if shutil.which("uv") is None:
            print("evidently: not measured, uv is not on PATH")
        else:
            try:
                rival = Evidently(folder, reference, current)
            except RuntimeError as error:
                print(f"evidently: not measured: {error}")
        schema = Schema(tuple(f"f{i}" for i in range(FEATURES)))
        write_log(folder, current)
        psi, ks = ours("psi", reference, current), ours("ks", reference, current)
        names = ["modelwharf, PSI", "modelwharf, KS", "reading these rows from the log", "scipy ks_2samp loop"]
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(ROUNDS):
            times[names[0]].append(seconds(psi))
            times[names[1]].append(seconds(ks))
            times[names[2]].append(seconds(lambda: read(folder, schema, max_rows=ROWS)))
            times[names[3]].append(seconds(lambda: scipy_loop(reference, current)))
            if rival:
                times.setdefault(f"evidently {rival.version} preset", []).append(rival.run())
        if rival:
            rival.close()
    base = statistics.median(times[names[0]])
    print(
        f"drift check, {ROWS:,} rows x {FEATURES} features, median of {ROUNDS} rounds, Python {sys.version.split()[0]}"
    )
    for label, found in times.items():
        middle = statistics.median(found)
        print(f"  {label:34} {middle:7.3f} s   {middle / base:6.1f} x PSI")


if __name__ == "__main__":
    main()
