"""Files on their way between this machine and a Job, as artifacts of MLflow runs that are found by a digest.

A file travels in pieces: each is sent again by itself after a fault, what is there already is not sent twice, and the
server, which keeps a piece in its temporary folder first, never needs room for all of it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ci.errors import Refusal, Unavailable
from ci.mlflow_api.rest import AlreadyThere, NotThere, RestStore
from ci.mlflow_api.store import Run

INPUTS, BATCHES = "wharf-inputs", "wharf-batches"  # experiments; no model can have such a name
PIECE = 64 << 20
_KEY = "wharf.key"


class FileStore(RestStore):
    """A `Store` that can also make runs, and list and send their files; for MLflow over HTTP only."""

    def keyed_run(self, experiment: str, key: str, tags: Mapping[str, str]) -> Run:
        """Return the run of `experiment` with this key, made with `tags` when there is none.

        Two that make it at once both return the one that began first.
        """
        number = self._experiment(experiment)
        found = self._with_key(number, key)
        if found is None:
            entries = [{"key": name, "value": value} for name, value in {**tags, _KEY: key}.items()]
            now = int(time.time() * 1000)
            self._call("POST", "runs/create", experiment_id=number, start_time=now, run_name=key[:16], tags=entries)
            found = self._with_key(number, key)
        if found is None:
            raise Unavailable(f"MLflow made a run for {experiment} {key[:16]}… and does not find it")
        return found

    def _experiment(self, name: str) -> str:
        for _ in range(2):
            try:
                found = self._call("GET", "experiments/get-by-name", experiment_name=name)
                return str(found["experiment"]["experiment_id"])
            except NotThere:
                try:
                    return str(self._call("POST", "experiments/create", name=name)["experiment_id"])
                except AlreadyThere:  # somebody was faster
                    continue
        raise Unavailable(f"MLflow neither finds nor makes the experiment {name}", tip="is it deleted? restore it")

    def _with_key(self, experiment: str, key: str) -> Run | None:
        answer = self._call(
            "POST",
            "runs/search",
            experiment_ids=[experiment],
            filter=f"tags.`{_KEY}` = '{key}'",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
            max_results=1,
        )
        runs = answer.get("runs", [])
        return self.run(str(runs[0]["info"]["run_id"])) if runs else None

    def finish(self, run: Run) -> None:
        """Mark a run as finished now."""
        self._call("POST", "runs/update", run_id=run.id, status="FINISHED", end_time=int(time.time() * 1000))

    def files(self, run: Run, folder: str) -> dict[str, int]:
        """Return name and size of the files in a folder of the run's artifacts."""
        found: dict[str, int] = {}
        page: dict[str, str] = {}
        while True:
            answer: dict[str, Any] = self._call("GET", "artifacts/list", run_id=run.id, path=folder, **page)
            for entry in answer.get("files", []):
                if not entry.get("is_dir"):
                    found[str(entry["path"]).rsplit("/", 1)[-1]] = int(entry.get("file_size", 0))
            if not answer.get("next_page_token"):
                return found
            page = {"page_token": str(answer["next_page_token"])}

    def send(self, path: Path, sha256: str, sent: Callable[[int], None] = lambda _: None) -> Run:
        """Bring the file `path`, whose digest is known, to MLflow unless it is there; return the run that has it.

        `sent` is told how many bytes are there, from time to time.
        """
        run = self.keyed_run(INPUTS, sha256, {"wharf.file": path.name, "wharf.sha256": sha256})
        if run.tags.get("wharf.state") == "complete":
            return run
        there, size = self.files(run, "pieces"), path.stat().st_size
        with path.open("rb") as file:
            for index, begin in enumerate(range(0, size, PIECE)):
                name = f"{index:05d}"
                if there.get(name) != min(PIECE, size - begin):
                    file.seek(begin)
                    self.write(run, f"pieces/{name}", file.read(PIECE))
                sent(min(begin + PIECE, size))
        self.set_run_tags(run.id, {"wharf.pieces": str(-(-size // PIECE)), "wharf.state": "complete"})
        self.finish(run)
        return run

    def receive(self, run_id: str, sha256: str, target: Path) -> Path:
        """Write the file that `send` brought to `target`; raises Refusal when it is not the one with this digest."""
        run = self.run(run_id)
        if run is None or run.tags.get("wharf.state") != "complete":
            raise Refusal(f"run {run_id}: has no complete file")
        target.parent.mkdir(parents=True, exist_ok=True)
        digest, draft = hashlib.sha256(), target.with_name(f".{target.name}.draft")
        try:
            with draft.open("wb") as file:
                for index in range(int(run.tags["wharf.pieces"])):
                    content = self.read(run, f"pieces/{index:05d}")
                    digest.update(content)
                    file.write(content)
            if digest.hexdigest() != sha256:
                raise Refusal(f"run {run_id}: its file has sha256 {digest.hexdigest()[:16]}…, not {sha256[:16]}…")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
        return target
