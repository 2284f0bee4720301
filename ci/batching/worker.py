"""The part of `wharf batch --on cluster` that runs in the Job: predict part by part, and bring each to MLflow.

A part that is there already is not predicted again, so another Job goes on where one was ended.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from bentos.predictors import ArtifactError, load
from ci.batching import artifact, parts, source
from ci.batching import run as batching
from ci.batching.predict import predict
from ci.batching.progress import Progress
from ci.console import say
from ci.errors import Refusal
from ci.files import sha256_file
from ci.mlflow_api.files import FileStore
from ci.workspace import find

FOLDER = "parts"  # of the batch's run in MLflow
DONE = {"wharf.predicted": "true"}


def words(chosen: artifact.Chosen, batch: batching.Batch, run_id: str, path: str, workers: int) -> list[str]:
    """Return the arguments of `main` for a batch whose parts go to the run `run_id`."""
    facts = {
        "model": chosen.model,
        "version": chosen.version,
        "run": chosen.run,
        "artifact": chosen.artifact,
        "commit": chosen.commit,
        "input": path,
        "k": batch.settings.k,
        "workers": workers,
        "key": batch.key,
        "parts": run_id,
    }
    return [word for name, value in facts.items() for word in (f"--{name}", str(value))]


def main(argv: list[str]) -> int:
    """Predict what is missing; raises Refusal when artifact or input are not those that were asked for."""
    parser = argparse.ArgumentParser(prog="predict")
    for name in ("model", "run", "artifact", "commit", "key", "parts"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("version", "k", "workers"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--input", type=Path, required=True)
    options = parser.parse_args(argv)
    chosen = artifact.Chosen(options.model, options.version, options.run, options.artifact, options.commit)
    try:
        predictor = load(artifact.fetch(find(), chosen), chosen.artifact)
    except ArtifactError as error:
        raise Refusal(str(error)) from None
    rows = source.look(options.input, predictor.spec, [])
    key = parts.key_of(rows, sha256_file(options.input), predictor.spec, options.k)
    if key != options.key:
        raise Refusal(
            "the input or the code of the Job is not what the command began with",
            tip="run the same command again from the commit that you mean",
        )
    store = FileStore(os.environ["MLFLOW_TRACKING_URI"])
    run = store.run(options.parts)
    if run is None:
        raise Refusal(f"MLflow has no run {options.parts} for the parts of this batch")
    there, progress = store.files(run, FOLDER), Progress(rows.rows)
    done = reused = 0

    def say_of(part: source.Part) -> bool:
        if parts.name_of(part.index) in there:
            return True
        store.write(run, f"{FOLDER}/{parts.name_of(part.index)}", parts.content(predict(predictor, part, options.k)))
        return False

    def take(part: source.Part, known: bool) -> None:
        nonlocal done, reused
        done, reused = done + part.rows, reused + (part.rows if known else 0)
        progress.show(done, part.share, reused)

    batching.each(rows, options.workers, say_of, take)
    store.set_run_tags(run.id, DONE)
    say(f"  {progress.summary(done)}")
    return 0
