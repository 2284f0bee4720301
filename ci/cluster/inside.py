"""What runs inside a Job: fetch the files that the work needs from MLflow, then do it.

`python -m ci.cluster.inside --fetch RUN SHA256 PATH … -- train tumor --json` is `wharf train tumor --json` once the
files are there; `-- predict …` is the worker of `wharf batch --on cluster`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from ci import cli
from ci.console import say
from ci.errors import Unavailable, WharfError
from ci.mlflow_api.files import FileStore

PREDICT = "predict"
_PAUSE_S, _PATIENCE_S = 10.0, 600.0


def command(words: list[str], fetch: list[tuple[str, str, str]]) -> tuple[str, ...]:
    """Return the command of a Job: run, digest and path of the files to fetch, then what `words` say."""
    fetched = [word for one in fetch for word in ("--fetch", *one)]
    return ("python", "-m", "ci.cluster.inside", *fetched, "--", *words)


def main(argv: list[str]) -> int:
    """Do the work and return its exit code (see ci.errors).

    While MLflow is away it is tried again: what is done by then is in the pod, and nowhere else yet.
    """
    mark = argv.index("--")
    parser = argparse.ArgumentParser(prog="ci.cluster.inside")
    parser.add_argument("--fetch", action="append", nargs=3, default=[], metavar=("RUN", "SHA256", "PATH"))
    options, words = parser.parse_args(argv[:mark]), argv[mark + 1 :]
    ends = time.monotonic() + _PATIENCE_S
    while True:
        code = _once(options.fetch, words)
        if code != Unavailable.exit_code or time.monotonic() > ends:
            return code
        say(f"  trying again in {_PAUSE_S:g} s")
        time.sleep(_PAUSE_S)


def _once(fetch: list[list[str]], words: list[str]) -> int:
    try:
        for run, sha256, path in fetch:
            target = Path(path)
            if not target.is_file():
                FileStore(os.environ["MLFLOW_TRACKING_URI"]).receive(run, sha256, target)
                say(f"  {target.name} is here, sha256 {sha256[:16]}…")
        if words[0] == PREDICT:
            from ci.batching import worker

            return worker.main(words[1:])
    except WharfError as error:
        for line in error.lines:
            say(f"ERROR  {line}")
        return error.exit_code
    return cli.main(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
