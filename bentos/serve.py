"""Start the bento that this file is in, as one process: `python <bento>/src/bentos/serve.py --port 3000`.

`bentoml serve` runs an arbiter and a worker, and every request passes BentoML's middleware (tracing, access log,
metrics). Here one process serves the same BentoML service, and /predict and /metrics go straight to its mounted
runtime; everything else passes through BentoML. docs/adr/ has the figures.

Exits 0 after SIGTERM or SIGINT, when requests in flight are answered; 3 when the model must not serve; 4 when the
port is taken: one line on standard error, no traceback.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).resolve().parents[1]  # src/ of the bento: the code and the model that were built together


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal; return the exit code."""
    parser = argparse.ArgumentParser(prog="serve", description="Serve this bento as one process.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=3000, help="port to listen on (default: %(default)s)")
    options = parser.parse_args(argv)
    # Bound before the slow imports: a taken port is said at once. Nothing is accepted before the model is ready.
    listener = socket.socket(socket.AF_INET6 if ":" in options.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((options.host, options.port))
    except OSError as error:
        print(f"cannot listen on {options.host}:{options.port}: {error.strerror}", file=sys.stderr, flush=True)
        return 4
    # Of this bento, and not of a checkout that is installed in the same environment.
    sys.path[:] = [str(SOURCE), *(entry for entry in sys.path if Path(entry or ".").resolve() != SOURCE / "bentos")]
    os.environ["BENTOML_DO_NOT_TRACK"] = "true"
    # /metrics is the runtime's; BentoML's own would need a folder that all its processes write to.
    options_text = os.environ.get("BENTOML_CONFIG_OPTIONS", "")
    os.environ["BENTOML_CONFIG_OPTIONS"] = f"{options_text} api_server.metrics.enabled=false".strip()
    return _serve(listener)


def _serve(listener: socket.socket) -> int:
    import uvicorn

    runtime, service = _service()
    runtime.load_or_exit()
    bento_app = service.to_asgi()
    direct = frozenset(("/predict", "/metrics"))

    def app(scope: Any, receive: Any, send: Any) -> Awaitable[None]:
        if scope["type"] == "http" and scope["path"] in direct:
            return runtime(scope, receive, send)
        return bento_app(scope, receive, send)

    config = uvicorn.Config(
        app,
        interface="asgi3",
        http="httptools",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=75,  # longer than the proxies in front: they must be the ones that close
        timeout_graceful_shutdown=int(runtime.spec.timeout_s) + 2,
    )
    # After its shutdown uvicorn raises the signal again; that must not turn a clean end into a death by signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    return 0 if server.started else 1


def _service() -> tuple[Any, Any]:
    """Return the runtime that is mounted on this bento's BentoML service, and the service."""
    import bentoml

    service: Any = bentoml.load(str(SOURCE.parent))
    from bentos.serving import Runtime

    return next(app for app, _, _ in service.mount_apps if isinstance(app, Runtime)), service


if __name__ == "__main__":
    sys.exit(main())
