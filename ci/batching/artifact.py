"""The exact version that a batch predicts with, and its files on this machine.

A release and its artifact's digest are in git, so once the files are known here a batch needs no registry: they are
looked for in `.wharf/cache/artifacts/<sha256>/` and in the bento store, and downloaded from MLflow only when neither
has them. Whatever the way, the artifact must have the sha256 of the release.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from ci.console import say
from ci.environments import load_all
from ci.errors import Mistake, Refusal, Unavailable, WharfError, did_you_mean
from ci.files import sha256_file, write_atomic
from ci.gating.champion import champion, released
from ci.release import Release
from ci.workspace import Workspace


@dataclass(frozen=True)
class Chosen:
    """An exact version; `environment` is where it is released, empty when it was chosen by its number."""

    model: str
    version: int
    run: str  # MLflow run id
    artifact: str  # sha256 of the file that predicts, 64 hex
    commit: str  # the commit that it was trained at
    environment: str = ""
    bento: str = ""  # its tag, where one was built


def choose(workspace: Workspace, name: str, environment: str | None = None, version: int | None = None) -> Chosen:
    """Return the version to predict with: `version`, or what is released in `environment`.

    By default that is the most advanced environment with a release. Raises Mistake when there is nothing to choose,
    Unavailable when the registry must be asked for a version and does not answer.
    """
    workspace.model(name)
    if version is not None:
        return _registered(workspace, name, version)
    if environment is None:
        best = champion(workspace, name)
        if best is None:
            raise Mistake(f"'{name}' is released nowhere: which version is to predict?", tip=_tip(workspace, name))
        return _from(best[1])
    known = [one.name for one in load_all(workspace.root)]
    if environment not in known:
        hint = did_you_mean(environment, known)
        raise Mistake(f"no environment '{environment}'{hint}", tip=f"environments: {', '.join(known)}")
    found = released(workspace, environment, name)
    if found is None:
        raise Mistake(f"'{name}' is not released in {environment}", tip=_tip(workspace, name))
    return _from(found.release)


def _from(release: Release) -> Chosen:
    artifact = release.artifact.removeprefix("sha256:")
    return Chosen(
        *(release.model, release.version, release.run, artifact, release.commit, release.environment, release.bento)
    )


def _tip(workspace: Workspace, name: str) -> str:
    from ci.registry import latest

    try:
        newest = latest(workspace, name)
    except WharfError:  # only a hint
        newest = None
    if newest is None:
        return f"`wharf ship {name}` trains and releases one"
    return f"give `--version {newest}`, the newest that is registered, or release one with `wharf promote {name}`"


def _registered(workspace: Workspace, name: str, version: int) -> Chosen:
    """Return the facts of a version from the registry, or, where it does not answer, as they were when last asked."""
    from ci.registry import facts

    noted = workspace.state / "cache" / "versions" / name / f"{version}.json"
    try:
        known = facts(workspace, name, version)
    except Unavailable:
        try:
            chosen = Chosen(**json.loads(noted.read_text()))
        except (OSError, ValueError, TypeError):
            chosen = None
        if chosen is None:
            raise
        say(f"  MLflow does not answer: version {version} of {name} is taken as this machine last knew it")
        return chosen
    chosen = Chosen(name, version, known.run, known.artifact, known.commit, bento=known.bento or "")
    write_atomic(noted, json.dumps(asdict(chosen)))
    return chosen


def fetch(workspace: Workspace, chosen: Chosen) -> Path:
    """Return a folder with serving.json and the artifact, which has the digest of `chosen`.

    Raises Refusal when what MLflow has is not what was released, Unavailable when it must be asked and does not answer.
    """
    cached = workspace.state / "cache" / "artifacts" / chosen.artifact
    if _holds(cached, chosen.artifact):
        return cached
    built = workspace.bento_store / "bentos" / chosen.bento.replace(":", "/") / "src" / "model"
    if chosen.bento and _holds(built, chosen.artifact):
        return built
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=f".{chosen.artifact[:16]}.") as scratch:
        draft = Path(scratch) / "model"
        _download(workspace, chosen, draft)
        shutil.rmtree(cached, ignore_errors=True)  # incomplete or damaged
        draft.rename(cached)
    return cached


def _holds(folder: Path, artifact: str) -> bool:
    """Tell whether `folder` is a model folder whose artifact has this digest."""
    try:
        said = json.loads((folder / "serving.json").read_bytes())
        return sha256_file(folder / Path(said["file"]).name) == artifact
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _download(workspace: Workspace, chosen: Chosen, target: Path) -> None:
    from ci import registry
    from ci.mlflow_api.store import connect

    store = connect(workspace)
    run = registry.finished_run(store, chosen.model, chosen.run)
    _, path = registry.serving_file(store, run)
    store.download(run, "model/serving.json", target / "serving.json")
    found = sha256_file(store.download(run, path, target / Path(path).name))
    if found != chosen.artifact:
        raise Refusal(
            f"{path} of run {chosen.run}: sha256 is {found[:16]}…, version {chosen.version} of "
            f"'{chosen.model}' has {chosen.artifact[:16]}…: refused to predict with it",
            tip="the run's files were changed after the gate; `wharf lineage` checks every link",
        )
