"""`wharf batch MODEL --input FILE --output FILE`: predict for every row of a Parquet or CSV file.

It predicts with the exact released artifact, checked as serving checks it. Rows that break the contract are listed
with their reason. The output appears when it is whole, with a manifest `<output>.json` that says which version
predicted which input: evidence that needs no registry. A command that was killed goes on where it was.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ci.console import say, step
from ci.errors import Mistake, Refusal
from ci.files import sha256_file
from ci.shell import CommandFailed, git
from ci.workspace import Workspace

if TYPE_CHECKING:
    from ci.batching.artifact import Chosen
    from ci.batching.run import Settings
    from ci.cluster.batching import Remote


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of a directory under models/")
    parser.add_argument(
        "--input", type=Path, required=True, metavar="FILE", help="a .parquet or .csv file with the rows"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the .parquet or .csv file to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--environment", metavar="ENV", help="predict with what is released there (default: the last)")
    which.add_argument("--version", type=int, metavar="N", help="predict with this version of the registry")
    parser.add_argument(
        "--max-rejected", type=float, default=0.0, metavar="SHARE", help="share of rows that may be wrong (default: 0)"
    )
    parser.add_argument("--k", type=int, default=10, help="items for each user of a ranking model (default: 10)")
    parser.add_argument("--prefix", default="", metavar="TEXT", help="begin the names of the added columns with this")
    parser.add_argument("--workers", type=int, metavar="N", help="predicting threads (default: one for each core)")
    parser.add_argument(
        "--on", choices=["local", "cluster"], default="local", help="predict here, or as a Job on the cluster"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    from ci.batching import artifact
    from ci.batching import run as batching

    settings = batching.Settings(
        output=options.output,
        max_rejected=options.max_rejected,
        prefix=options.prefix,
        k=options.k,
        workers=batching.usable_cores() if options.workers is None else options.workers,
    )
    batching.check(settings)
    chosen = artifact.choose(workspace, options.model, options.environment, options.version)
    manifest, reused = predict(workspace, chosen, options.input, settings, on_cluster=options.on == "cluster")
    if options.json:
        print(json.dumps(manifest, indent=1))
    else:
        print(_line(manifest, reused))
    return 0


def predict(
    workspace: Workspace, chosen: Chosen, path: Path, settings: Settings, *, on_cluster: bool = False
) -> tuple[dict[str, Any], bool]:
    """Predict for the rows of `path` with the version `chosen`; return the manifest.

    The second value is True when the output was there already, from an earlier command with the same input, version
    and settings. Raises Mistake (input, options), Refusal (artifact, rejected rows), Unavailable (the artifact is not
    on this machine and MLflow does not answer; the cluster).
    """
    from bentos.predictors import ArtifactError, load
    from ci.batching import artifact, output, run, source

    remote = _remote(workspace, chosen) if on_cluster else None
    try:
        predictor = load(artifact.fetch(workspace, chosen), chosen.artifact)
    except ArtifactError as error:
        raise Refusal(str(error)) from None
    _require_apart(path, settings.output)
    found = source.look(path, predictor.spec, output.names(predictor.spec, settings.prefix))
    with step(f"read {path.name}") as shown:
        batch = run.Batch(found, sha256_file(path), predictor.spec, chosen.version, settings)
        shown.note = f"sha256 {batch.sha256[:16]}…"
    if (manifest := run.already(batch)) is not None:
        return manifest, True
    facts = {**_facts(workspace, chosen), "on": "cluster" if remote else "local"}
    if remote is None:
        return run.run(batch, predictor, facts), False
    return run.run(batch, None, facts, lambda kept: remote.fill(batch, kept)), False


def _remote(workspace: Workspace, chosen: Chosen) -> Remote:
    from ci.cluster.batching import Remote

    return Remote(workspace, chosen)


def _require_apart(path: Path, output: Path) -> None:
    if path.resolve() == output.resolve():
        raise Mistake(f"--output {output}: is the input; give another name")


def _facts(workspace: Workspace, chosen: Chosen) -> dict[str, Any]:
    try:
        commit = git(workspace.root, "rev-parse", "--verify", "HEAD^{commit}")
    except CommandFailed:
        commit = ""  # it predicts all the same: the artifact decides, not the checkout
    return {
        "model": chosen.model,
        "version": chosen.version,
        "environment": chosen.environment or None,
        "artifact_sha256": chosen.artifact,
        "run": chosen.run,
        "trained_commit": chosen.commit,
        "commit": commit,
    }


def _line(manifest: dict[str, Any], reused: bool) -> str:
    if manifest["rejected"]:
        say(f"  {manifest['rejected']:,} rows were rejected: {manifest['output']['path']}.rejected.csv")
    for name, count in manifest["outside"].items():
        say(f"  {name}: {count:,} values are outside of what training allowed")
    words = f"{manifest['predicted']:,} predictions by {manifest['model']} {manifest['version']}"
    return f"{words}  {manifest['output']['path']}{' (already there)' if reused else ''}"
