"""Batch prediction: rows a second and memory of `wharf batch`, and of the same by pandas and by scikit-learn.

Run with `python -m tests.bench.bench_batch [ROWS]` (default 1,000,000 rows of 30 numbers in Parquet, a fifth of it in
CSV; the rivals hold everything in memory). Each measurement is a process of its own, rounds are interleaved, medians.
The times are of the work, without imports. Then once 10,000,000 rows from Parquet by `wharf batch` alone: its memory
must not grow with them.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

ROUNDS, COLUMNS, LARGE = 3, 30, 10_000_000
_NAMES = [f"c{i:02d}" for i in range(COLUMNS)]

_OURS = """
import json, sys, time
from pathlib import Path
import onnxruntime
from bentos.predictors import load
from ci.batching import output, run, source
from ci.files import sha256_file
folder, path, target = map(Path, sys.argv[1:])
begun = time.perf_counter()
settings = run.Settings(target, workers=run.usable_cores())
predictor = load(folder)
found = source.look(path, predictor.spec, output.names(predictor.spec, ""))
batch = run.Batch(found, sha256_file(path), predictor.spec, 1, settings)
manifest = run.run(batch, predictor, {})
"""
_PANDAS = """
import json, sys, time
from pathlib import Path
import numpy as np, onnxruntime, pandas as pd
folder, path, target = map(Path, sys.argv[1:])
begun = time.perf_counter()
session = onnxruntime.InferenceSession(folder / "artifact.onnx")
frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
names = json.loads((folder / "names.json").read_text())
labels, probabilities = session.run(["label", "probabilities"], {"rows": frame[names].to_numpy(np.float32)})
frame["prediction"] = np.array(["no", "yes"])[labels]
frame["probability"] = probabilities[:, 1]
frame["model"], frame["version"] = "bench", 1
frame.to_parquet(target) if target.suffix == ".parquet" else frame.to_csv(target, index=False)
"""
_SKLEARN = """
import json, sys, time
from pathlib import Path
import numpy as np, pandas as pd, skops.io, sklearn.pipeline
folder, path, target = map(Path, sys.argv[1:])
begun = time.perf_counter()
fitted = skops.io.load(folder / "fitted.skops")
frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
names = json.loads((folder / "names.json").read_text())
probabilities = fitted.predict_proba(frame[names].to_numpy(np.float32))
frame["prediction"] = np.array(["no", "yes"])[probabilities.argmax(axis=1)]
frame["probability"] = probabilities[:, 1].astype(np.float32)
frame["model"], frame["version"] = "bench", 1
frame.to_parquet(target) if target.suffix == ".parquet" else frame.to_csv(target, index=False)
"""
_END = """
seconds = time.perf_counter() - begun
# Not ru_maxrss: that begins with what the parent process had.
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps([seconds, int(peak.split()[1]) / 1024]))
"""
WAYS = {"wharf batch": _OURS, "pandas + onnxruntime": _PANDAS, "pandas + scikit-learn": _SKLEARN}


def model(folder: Path) -> Path:
    """Write a logistic regression on COLUMNS numbers: as ONNX with its serving.json, and as skops for the rival."""
    import skops.io
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from tests.bentos import artifacts

    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2000, COLUMNS)).astype(np.float32)
    fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, rows[:, 0] + rows[:, 1] > 0)
    fitted[-1].classes_ = np.array([0, 1])
    columns = [{"name": name, "type": "float"} for name in _NAMES]
    content = artifacts.onnx_bytes(fitted, "binary", COLUMNS)
    artifacts.write(folder, content, model="bench", task="binary", classes=["no", "yes"], columns=columns)
    skops.io.dump(fitted, folder / "fitted.skops")
    (folder / "names.json").write_text(json.dumps(_NAMES))
    return folder


def rows(path: Path, count: int) -> Path:
    """Write `count` rows, a million at a time: as Parquet with dictionaries off, or as CSV with 6 digits."""
    rng = np.random.default_rng(1)
    fields = [("id", pa.int64()), *((name, pa.float64()) for name in _NAMES)]
    schema = pa.schema(fields)
    make = pq.ParquetWriter if path.suffix == ".parquet" else pacsv.CSVWriter
    with make(path, schema) as writer:
        for begin in range(0, count, 1_000_000):
            n = min(1_000_000, count - begin)
            numbers = [rng.normal(size=n) for _ in _NAMES]
            if path.suffix == ".csv":
                numbers = [values.round(6) for values in numbers]
            writer.write_table(pa.table([np.arange(begin, begin + n), *numbers], schema=schema))
    return path


def measure(code: str, *words: Path) -> tuple[float, float]:
    """Return seconds and peak megabytes of a process that runs `code`."""
    command = [sys.executable, "-c", code + _END, *map(str, words)]
    seconds, memory = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return float(seconds), float(memory)


def compare(made: Path, folder: Path, count: int, suffix: str) -> None:
    """Print the three ways for one kind of file."""
    path = rows(folder / f"rows{suffix}", count)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, code in WAYS.items():
            target = folder / f"scored{suffix}"
            found[name].append(measure(code, made, path, target))
            for left in folder.glob("*scored*"):
                left.unlink()
    base = statistics.median(seconds for seconds, _ in found["wharf batch"])
    print(f"batch, {count:,} rows x {COLUMNS} numbers, {suffix[1:]} to {suffix[1:]}, median of {ROUNDS} rounds")
    for name, each in found.items():
        seconds = statistics.median(seconds for seconds, _ in each)
        memory = max(memory for _, memory in each)
        print(f"  {name:22} {seconds:6.1f} s {count / seconds:11,.0f} rows/s {seconds / base:5.2f} x {memory:7,.0f} MB")
    path.unlink()


def main() -> None:
    """Print all figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    with tempfile.TemporaryDirectory(prefix="wharf-bench-") as name:
        folder = Path(name)
        made = model(folder / "model")
        compare(made, folder, count, ".parquet")
        compare(made, folder, count // 5, ".csv")  # the rivals need a minute for a million
        if len(sys.argv) == 1:
            seconds, memory = measure(_OURS, made, rows(folder / "large.parquet", LARGE), folder / "scored.parquet")
            print(f"wharf batch, {LARGE:,} rows x {COLUMNS} numbers, parquet to parquet")
            print(f"  {seconds:6.1f} s {LARGE / seconds:11,.0f} rows/s, at most {memory:,.0f} MB")


if __name__ == "__main__":
    main()
