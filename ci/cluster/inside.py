"""What runs inside a Job: fetch the files that the work needs from MLflow, then do it.

`python -m ci.cluster.inside --fetch RUN SHA256 PATH … -- train tumor --json` is `wharf train tumor --json` once the
files are there; `-- predict …` is the worker of `wharf batch --on cluster`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from ci import cli
from ci.console import say
from ci.errors import WharfError
from ci.mlflow_api.files import FileStore

PREDICT = "predict"


def command(words: list[str], fetch: list[tuple[str, str, str]]) -> tuple[str, ...]:
    """Return the command of a Job: run, digest and path of the files to fetch, then what `words` say."""
    fetched = [word for one in fetch for word in ("--fetch", *one)]
    return ("python", "-m", "ci.cluster.inside", *fetched, "--", *words)


def main(argv: list[str]) -> int:
    """Return the exit code of the work, or 2 to 4 (see ci.errors) when a file cannot be fetched."""
    mark = argv.index("--")
    parser = argparse.ArgumentParser(prog="ci.cluster.inside")
    parser.add_argument("--fetch", action="append", nargs=3, default=[], metavar=("RUN", "SHA256", "PATH"))
    options, words = parser.parse_args(argv[:mark]), argv[mark + 1 :]
    try:
        for run, sha256, path in options.fetch:
            FileStore(os.environ["MLFLOW_TRACKING_URI"]).receive(run, sha256, Path(path))
            say(f"  {path} is here, sha256 {sha256[:16]}…")
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
