"""`make bench`: print every figure of docs/benchmarks.md. Nothing here fails by time."""

from __future__ import annotations

import subprocess
import sys

PARTS = ["bench_drift", "bench_gitops", "bench_serving", "bench_batch", "bench_loop"]

if __name__ == "__main__":
    chosen = sys.argv[1:] or PARTS
    for part in chosen:
        subprocess.run([sys.executable, "-m", f"tests.bench.{part}"], check=True)
