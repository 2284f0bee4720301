"""`wharf batch … --on cluster`: the predicting runs as a Job; only the predictions come back.

The input goes to MLflow once, by its digest. Each part of the predictions is an artifact of the batch's run as soon as
it is done, so a Job that was ended is gone on with. The output is put together here, from the input and the parts.
"""

from __future__ import annotations

import math

from ci.batching import parts, worker
from ci.batching.artifact import Chosen
from ci.batching.run import Batch
from ci.cluster import inside, jobs
from ci.cluster.kube import connect
from ci.cluster.training import in_trainer, require_cluster, require_committed
from ci.console import say, step
from ci.files import write_atomic
from ci.mlflow_api.files import BATCHES, FileStore
from ci.mlflow_api.store import Run
from ci.shell import git
from ci.workspace import Workspace, load_spec

_CODE = ("ci", "bentos", "models", "uv.lock")


class Remote:
    """Has the parts of a batch predicted on the cluster."""

    def __init__(self, workspace: Workspace, chosen: Chosen) -> None:
        """Raise Unavailable without a cluster, Mistake for code that is in no commit."""
        self._workspace, self._chosen = workspace, chosen
        self._access, uri = require_cluster(workspace)
        how = ["--porcelain", "-z", "--untracked-files=all", "--no-renames"]
        listed = git(workspace.root, "status", *how, "--", *_CODE)
        require_committed([entry[3:] for entry in listed.split("\0") if entry])
        self._store = FileStore(uri)

    def fill(self, batch: Batch, kept: parts.Parts) -> None:
        """Bring every part to `kept`, by a Job where MLflow does not have all of them."""
        chosen = self._chosen
        facts = {
            "wharf.model": chosen.model,
            "wharf.version": str(chosen.version),
            "wharf.artifact_sha256": chosen.artifact,
            "wharf.input_sha256": batch.sha256,
        }
        run = self._store.keyed_run(BATCHES, batch.key, facts)
        if not worker.DONE.items() <= run.tags.items():
            self._predict(batch, run)
        names = self._store.files(run, worker.FOLDER)
        with step(f"download {len(names)} parts"):
            for name in sorted(names):
                if not (kept.folder / name).is_file():
                    write_atomic(kept.folder / name, self._store.read(run, f"{worker.FOLDER}/{name}"))
        self._store.finish(run)

    def _predict(self, batch: Batch, run: Run) -> None:
        path = batch.source.path
        with step(f"upload {path.name}") as shown:
            sent = self._store.send(path, batch.sha256)
            shown.note = f"run {sent.id[:8]} of {sent.tags.get('wharf.file', path.name)}"
        target = f".wharf/batch/{batch.sha256[:16]}/input{path.suffix}"
        threads = math.ceil(_cores(load_spec(self._workspace, self._chosen.model).jobs.cpu))
        words = worker.words(self._chosen, batch, run.id, target, threads)
        command = inside.command([inside.PREDICT, *words], [(sent.id, batch.sha256, target)])
        work = in_trainer(self._workspace, self._access, self._chosen.model, "batch", batch.key, command)
        say(f"  the Job {work.name} predicts")
        jobs.run_job(connect(self._access), work)


def _cores(cpu: str) -> float:
    """Return a Kubernetes quantity of processor time as a number of processors."""
    return int(cpu[:-1]) / 1000 if cpu.endswith("m") else float(cpu)
