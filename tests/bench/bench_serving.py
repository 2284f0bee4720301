"""Requests per second and latency of one served row, one process, beside other ways to serve the same model.

`python -m tests.bench.bench_serving [SECONDS]` prints two Markdown tables; three interleaved rounds on 127.0.0.1.
Read the ratios: the client and the servers share the machine's cores.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROUNDS, CONNECTIONS = 3, (1, 8)
NAMES = {
    "wharf": "Modelwharf (ONNX, verified, logged, measured)",
    "fastapi": "(a) FastAPI + uvicorn + scikit-learn",
    "mlflow": "(b) `mlflow models serve`",
    "bentoml": "(c) stock `@bentoml.api` handler",
    "echo": "(d) bare ASGI route that only echoes",
}


def prepare(folder: Path) -> tuple[list[float], Path]:
    """Train tumor, save it for everybody, build its bento; return one row and the bento."""
    import joblib
    import mlflow.sklearn

    from ci import build
    from ci.training.model_code import call
    from ci.workspace import Workspace, find, load_spec
    from tests.bentos import artifacts

    here = find(Path(__file__))
    spec = load_spec(here, "tumor")
    frame = call(here, "tumor", "data", "load", None)
    model = call(here, "tumor", "train", "fit", frame, spec.training.params, spec.training.seed)
    joblib.dump(model, folder / "model.joblib")
    mlflow.sklearn.save_model(model, str(folder / "mlflow"), pip_requirements=["scikit-learn"])
    columns = [{"name": name, "type": c.type, "min": c.min, "max": c.max} for name, c in spec.data.by_name().items()]
    artifacts.write(
        folder / "model",
        artifacts.onnx_bytes(model, "binary", len(columns)),
        model="tumor",
        task="binary",
        columns=columns,
        classes=spec.data.classes,
    )

    class Elsewhere(Workspace):
        """This checkout with its state in the temporary folder."""

        @property
        def state(self) -> Path:
            return folder / "state"

    workspace = Elsewhere(here.root)
    with build.store_lock(workspace) as scratch:
        bento = build.package(workspace, "tumor", folder / "model", scratch)
    return frame.drop(columns="diagnosis").iloc[0].tolist(), bento.path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(command: list[str], url: str, body: bytes, folder: Path, stack: ExitStack) -> float:
    """Start a server, wait until it answers `body`; return the seconds that took."""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # `mlflow models serve` looks for uvicorn there
        "OMP_NUM_THREADS": "1",
        "BENTOML_DO_NOT_TRACK": "true",
        "BENTOML_HOME": str(folder / "bentoml"),
        "WHARF_PREDICTION_LOG": str(folder / "log"),
        "WHARF_VERSION": "1",
    }
    log = (folder / f"{Path(url).parts[1].replace(':', '-')}.log").open("w")
    begun = time.monotonic()
    root = Path(__file__).resolve().parents[2]
    server = subprocess.Popen(command, env=env, cwd=root, stdout=log, stderr=log, start_new_session=True)
    stack.callback(stop, server)
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                answer.read()
                return time.monotonic() - begun
        except OSError as error:
            refused = isinstance(error, urllib.error.HTTPError)
            if refused or server.poll() is not None or time.monotonic() - begun > 180:
                raise SystemExit(f"{' '.join(command[:6])} did not answer ({error}): see {log.name}") from None
            time.sleep(0.1)


def stop(server: subprocess.Popen[bytes]) -> None:
    """Stop a server and the processes that it started."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def measure(url: str, body: Path, connections: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench.load", url, str(body), str(connections), str(seconds)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout))


def main(seconds: float) -> None:
    from ci.build import serve_command
    from tests.bench.serving_rivals import command

    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        folder = Path(temporary)
        row, bento = prepare(folder)
        bodies = {name: folder / f"{name}.json" for name in NAMES}
        for name, path in bodies.items():
            path.write_text(json.dumps({"inputs": [row]} if name == "mlflow" else {"rows": [row]}))
        urls: dict[str, str] = {}
        started: dict[str, float] = {}
        for name in NAMES:
            port = free_port()
            urls[name] = f"http://127.0.0.1:{port}/{'invocations' if name == 'mlflow' else 'predict'}"
            words = serve_command(bento, port) if name == "wharf" else command(name, folder, port)
            started[name] = start(words, urls[name], bodies[name].read_bytes(), folder, stack)
            print(f"  {name} answers after {started[name]:.1f}s", file=sys.stderr)
        found: dict[tuple[str, int], list[dict[str, float]]] = {}
        for turn in range(ROUNDS):
            for connections in CONNECTIONS:
                for name in NAMES:
                    measure(urls[name], bodies[name], connections, seconds / 4)
                    result = measure(urls[name], bodies[name], connections, seconds)
                    if result["failed"]:
                        raise SystemExit(f"{name}: {result['failed']:.0f} answers were not 200")
                    found.setdefault((name, connections), []).append(result)
            print(f"  round {turn + 1} of {ROUNDS}", file=sys.stderr)
    for connections in CONNECTIONS:
        print(f"\nOne row of tumor, one process, {connections} connection{'s' if connections > 1 else ''}:\n")
        print("| server | requests/s | p50 ms | p99 ms | Modelwharf is | starts in s |")
        print("|---|---:|---:|---:|---:|---:|")
        for name, title in NAMES.items():
            middle = {key: statistics.median(r[key] for r in found[name, connections]) for key in ("rps", "p50", "p99")}
            pairs: list[Any] = list(zip(found["wharf", connections], found[name, connections], strict=True))
            ratio = statistics.median(ours["rps"] / theirs["rps"] for ours, theirs in pairs)
            share = "" if name == "wharf" else f"{ratio:.2f} x"
            print(
                f"| {title} | {middle['rps']:.0f} | {middle['p50']:.2f} | {middle['p99']:.2f} "
                f"| {share} | {started[name]:.1f} |"
            )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 3.0)
