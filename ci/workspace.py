"""Where things are: the repository that a command works on and its local state under `.wharf/`."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ci.errors import Mistake, Unavailable, did_you_mean

if TYPE_CHECKING:
    from models.spec import ModelSpec


@dataclass(frozen=True)
class Workspace:
    """One checkout of a Modelwharf repository."""

    root: Path

    @property
    def state(self) -> Path:
        """All local state; removing this folder forgets everything."""
        return self.root / ".wharf"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def bentos(self) -> Path:
        return self.root / "bentos"

    @property
    def gitops(self) -> Path:
        return self.root / "gitops"

    @property
    def logs(self) -> Path:
        return self.state / "logs"

    @property
    def bento_store(self) -> Path:
        """BENTOML_HOME of the local target: the built bentos."""
        return self.state / "bentoml"

    def predictions(self, environment: str, model: str) -> Path:
        """Folder of the prediction log: one `YYYY-MM-DD.jsonl` a day."""
        return self.state / "predictions" / environment / model

    def labels(self, environment: str, model: str) -> Path:
        """Folder of labels that came later, joined to predictions by request id."""
        return self.state / "labels" / environment / model

    def model_names(self) -> list[str]:
        """Return the names of the model directories, sorted."""
        return sorted(path.parent.name for path in self.models.glob("*/model.yaml"))

    def model(self, name: str) -> Path:
        """Return the directory of model `name`; raises Mistake for an unknown one."""
        if not (self.models / name / "model.yaml").is_file():
            known = self.model_names()
            raise Mistake(
                f"no model '{name}' in {self.models.name}/{did_you_mean(name, known)}",
                tip=f"models here: {', '.join(known) or 'none'}; make one with `wharf new {name}`",
            )
        return self.models / name


def find(start: Path | None = None) -> Workspace:
    """Return the workspace that holds `start` (default: the current folder); raises Mistake outside of one."""
    here = (start or Path.cwd()).resolve()
    for folder in [here, *here.parents]:
        if (folder / "models").is_dir() and (folder / "gitops").is_dir():
            return Workspace(folder)
    raise Mistake(f"{here} is not inside a Modelwharf repository", tip="cd into your clone and run this again")


def load_spec(workspace: Workspace, name: str) -> ModelSpec:
    """Return the contract of model `name`; raises Mistake with one line a fault."""
    from models.spec import SpecError, load  # pydantic: only for those who need a spec

    try:
        return load(workspace.model(name))
    except SpecError as error:
        raise Mistake(error.lines, tip=f"correct models/{name}/model.yaml; `wharf validate` checks it") from None


def shown_uri(text: str) -> str:
    """Return an address, or a text that holds some, without the user names and passwords written into them."""
    return re.sub(r"://[^/\s?#'\"]*@", "://", text)


def _ask_no_proxy(uri: str) -> None:
    """Have the HTTP libraries of this process reach our own server directly: no proxy knows the way to this machine."""
    if not any(os.environ.get(name) for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")):
        return
    host = urlsplit(uri).hostname or ""
    for name in ("no_proxy", "NO_PROXY"):
        known = [each.strip() for each in os.environ.get(name, "").split(",") if each.strip()]
        if host not in known:
            os.environ[name] = ",".join([*known, host])


def tracking_uri(workspace: Workspace) -> str:
    """Return MLFLOW_TRACKING_URI, or the address of the local MLflow that `wharf up` started.

    Raises Unavailable when neither is known.
    """
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    try:
        uri = str(json.loads((workspace.state / "platform.json").read_text())["mlflow"]["url"])
        _ask_no_proxy(uri)
        return uri
    except (OSError, KeyError, ValueError, TypeError):
        raise Unavailable(
            "no MLflow server is known: MLFLOW_TRACKING_URI is not set and the local platform was never started",
            tip="start it with `make up`, or set MLFLOW_TRACKING_URI",
        ) from None
