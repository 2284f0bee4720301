"""`wharf logs`: what the process of a model, MLflow or the agent said; on a cluster what the pods say."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterable
from pathlib import Path

from ci.cluster import access
from ci.errors import Mistake
from ci.workspace import Workspace

PARTS = ("mlflow", "agent")
_TAIL_BYTES = 4 * 1024 * 1024  # the end of a log that is looked at for its last lines


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="a model, or one of: mlflow, agent (on a cluster argocd)")
    parser.add_argument("--env", help="of this environment only (default: of all)")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until Ctrl-C")
    parser.add_argument("-n", "--lines", type=int, default=50, help="how many lines of the end (default: 50)")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    if access.load(workspace):
        from ci.cluster import podlogs

        podlogs.show(workspace, options.name, options.env, options.lines, options.follow)
        return 0
    files = log_files(workspace, options.name, options.env)
    many = len(files) > 1
    places = {name: _show(name, path, options.lines, many) for name, path in files.items()}
    while options.follow:
        time.sleep(0.3)
        places = {name: _show_new(name, path, places[name], many) for name, path in files.items()}
    return 0


def log_files(workspace: Workspace, name: str, environment: str | None = None) -> dict[str, Path]:
    """Return the logs of a model by environment, or the one of a part; raises Mistake when there is none."""
    if name in PARTS:
        found = {name: workspace.logs / f"{name}.log"}
    else:
        if name not in workspace.model_names() and not list(workspace.logs.glob(f"*-{name}.log")):
            workspace.model(name)  # raises, with the likely meaning
        paths = sorted(workspace.logs.glob(f"{environment or '*'}-{name}.log"))
        found = {path.name.removesuffix(f"-{name}.log"): path for path in paths}
    found = {key: path for key, path in found.items() if path.is_file()}
    if not found:
        where = f" in {environment}" if environment else ""
        raise Mistake(f"{name} has no log{where}: nothing of it was started here", tip="see `wharf status`")
    return found


def _show(name: str, path: Path, count: int, many: bool) -> int:
    """Print the last `count` lines and return where the file ended."""
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _TAIL_BYTES))
        text = stream.read(size)
        ended = stream.tell()
    _print(name, text.decode(errors="replace").splitlines()[-count:] if count > 0 else [], many)
    return ended


def _show_new(name: str, path: Path, since: int, many: bool) -> int:
    """Print the whole lines that came after `since` and return where they end."""
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            begin = since if since <= size else 0  # a new file took its place
            stream.seek(begin)
            text = stream.read()
    except FileNotFoundError:
        return 0  # just being replaced
    whole = text.rfind(b"\n") + 1
    _print(name, text[:whole].decode(errors="replace").splitlines(), many)
    return begin + whole


def _print(name: str, lines: Iterable[str], many: bool) -> None:
    for line in lines:
        print(f"{name} | {line}" if many else line, flush=True)
