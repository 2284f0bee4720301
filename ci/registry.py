"""`wharf register MODEL`: make a gated run an exact version, and read what is known of versions.

A version's facts are its tags; `wharf.verdict` is written last, so a version without it was interrupted and the
next `register` of the same run completes it. Facts of a complete version never change, except that `build` adds
`wharf.bento` and `wharf.image`.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from dataclasses import asdict, dataclass
from typing import Any

from ci.console import step, table
from ci.errors import Mistake, Refusal, Unavailable
from ci.files import sha256_bytes
from ci.gating import evidence as record
from ci.gating.evidence import Evidence
from ci.mlflow_api.store import NoArtifact, Run, Store, Version, connect
from ci.workspace import Workspace, load_spec, shown_uri

_TAGS = {
    "run": "wharf.run",
    "verdict": "wharf.verdict",
    "evidence": "wharf.evidence_sha256",
    "artifact": "wharf.artifact_sha256",
    "data": "wharf.data_sha256",
    "commit": "wharf.commit",
    "bento": "wharf.bento",
    "image": "wharf.image",
}


@dataclass(frozen=True)
class VersionFacts:
    """What the registry knows of one complete version."""

    model: str
    version: int
    run: str  # MLflow run id
    verdict: str  # always "passed": nothing else is registered
    evidence: str  # sha256 of evidence.json, 64 hex
    artifact: str  # sha256 of the file that serves, 64 hex
    data: str  # sha256 of the dataset, 64 hex
    commit: str  # 40 hex
    bento: str | None
    image: str | None


def facts(workspace: Workspace, name: str, version: int) -> VersionFacts:
    """Return the facts of a version by one point read.

    Raises Mistake when there is no such version or its registration was interrupted, Unavailable when MLflow is down.
    """
    store = connect(workspace)
    found = store.version(name, version)
    if found is None:
        newest = store.newest_number(name)
        known = f"the newest is {newest}" if newest else "it has none"
        raise Mistake(f"model '{name}' has no version {version} in the registry; {known}")
    if "wharf.verdict" not in found.tags:
        raise Mistake(
            f"version {version} of '{name}' is incomplete: it was not registered by wharf, or that was interrupted",
            tip=f"complete it with `wharf register {name} --run {found.run}`",
        )
    return _facts(found)


def _facts(version: Version) -> VersionFacts:
    tags = version.tags
    missing = [tag for key, tag in _TAGS.items() if key not in {"bento", "image"} and not tags.get(tag)]
    if missing:
        raise Mistake(f"version {version.number} of '{version.model}' lacks the tag {missing[0]} in the registry")
    known = {key: tags.get(tag) for key, tag in _TAGS.items()}
    return VersionFacts(model=version.model, version=version.number, **known)  # pyright: ignore[reportArgumentType]


def latest(workspace: Workspace, name: str) -> int | None:
    """Return the newest complete version number of `name`, None when there is none."""
    store = connect(workspace)
    for number in range(store.newest_number(name) or 0, 0, -1):
        found = store.version(name, number)
        if found is not None and "wharf.verdict" in found.tags:
            return number
    return None


def set_facts(workspace: Workspace, name: str, version: int, **tags: str) -> None:
    """Set facts of a version: keywords are the fields of VersionFacts (`bento="tumor:0123…", image="…"`)."""
    unknown = sorted(set(tags) - set(_TAGS))
    if unknown:
        raise TypeError(f"no fact is called {unknown[0]}")
    connect(workspace).set_version_tags(name, version, {_TAGS[key]: value for key, value in tags.items()})


def evidence(workspace: Workspace, name: str, version: int) -> dict[str, Any]:
    """Return evidence.json of a version; raises Refusal when it is not the one that was registered."""
    known = facts(workspace, name, version)
    content = evidence_bytes(connect(workspace), name, known.run, known.evidence)
    return dict(json.loads(content))


def evidence_bytes(store: Store, name: str, run_id: str, sha256: str) -> bytes:
    """Return the evidence of a run that has this digest; raises Refusal when the run has no such evidence."""
    run = finished_run(store, name, run_id)
    found = ""
    for path in (record.kept_path(sha256), record.NEWEST):
        try:
            content = store.read(run, path)
        except NoArtifact:
            continue
        found = sha256_bytes(content)
        if found == sha256:
            return content
    said = f"what is there has {found[:16]}…" if found else "it is gone"
    raise Refusal(f"evidence of run {run_id} ('{name}'): sha256 {sha256[:16]}… is expected, {said}")


def finished_run(store: Store, name: str, run_id: str | None) -> Run:
    """Return a complete run of model `name` (None: the newest); raises Mistake when there is none."""
    run = store.run(_run_id(run_id)) if run_id else store.newest_run(name)
    if run is None:
        what = f"MLflow has no run {run_id}" if run_id else f"model '{name}' has no finished run in MLflow"
        raise Mistake(what, tip=f"train one with `wharf train {name}`")
    if run.tags.get("wharf.model") != name:
        raise Mistake(f"run {run.id} belongs to model '{run.tags.get('wharf.model', '?')}', not '{name}'")
    if not run.complete:
        raise Mistake(
            f"run {run.id} of '{name}' is not complete: its training failed, goes on, or was interrupted",
            tip=f"`wharf train {name}` makes a complete one",
        )
    return run


def _run_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{32}", text):
        raise Mistake(f"--run: '{text}' is not a run id (32 hex digits)")
    return text


def read_evidence(store: Store, run: Run) -> tuple[Evidence, str] | None:
    """Return the newest evidence of a run with its digest.

    None when there is none, or when what is there was interrupted (its digest is not the one in the run's tags).
    """
    try:
        content = store.read(run, record.NEWEST)
    except NoArtifact:
        return None
    sha256 = sha256_bytes(content)
    if run.tags.get(record.DIGEST_TAG) != sha256:
        return None
    return record.load(content, f"run {run.id}: {record.NEWEST}"), sha256


def serving_file(store: Store, run: Run) -> tuple[dict[str, Any], str]:
    """Return the run's serving.json and the path of its artifact; raises Refusal when that is not usable."""
    try:
        serving = dict(json.loads(store.read(run, "model/serving.json")))
        name = str(serving["file"])
    except (ValueError, KeyError, NoArtifact) as error:
        raise Refusal(f"run {run.id}: model/serving.json is not usable ({type(error).__name__}: {error})") from None
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise Refusal(f"run {run.id}: model/serving.json: file '{name}' is not a plain file name")
    return serving, f"model/{name}"


def register(workspace: Workspace, name: str, run_id: str | None = None) -> int:
    """Make a gated run a version and return its number; the same run is always the same version.

    Raises Refusal for a run without passing evidence, or whose evidence or artifact is not what was gated.
    """
    spec = load_spec(workspace, name)
    store = connect(workspace)
    run = finished_run(store, name, run_id)
    sha256 = _passing(store, name, run)
    store.ensure_model(
        name, spec.description, {"wharf.owner": spec.owner, "wharf.team": spec.team, "wharf.task": spec.task}
    )
    version = _the_one(store, name, run.id) or _create(store, name, run)
    if "wharf.verdict" not in version.tags:
        tags = {
            "wharf.run": run.id,
            "wharf.evidence_sha256": sha256,
            "wharf.artifact_sha256": run.tags["wharf.artifact_sha256"],
            "wharf.data_sha256": run.tags["wharf.data_sha256"],
            "wharf.commit": run.tags["wharf.commit"],
            "wharf.verdict": "passed",  # last: from here on the version is complete
        }
        changed = {key: value for key, value in tags.items() if version.tags.get(key) != value}
        store.set_version_tags(name, version.number, changed)
    return version.number


def _passing(store: Store, name: str, run: Run) -> str:
    """Return the digest of the run's evidence; raises Refusal unless it passed and the artifact is the gated one."""
    tip = f"gate it with `wharf gate {name} --run {run.id}`"
    found = read_evidence(store, run)
    if found is None:
        raise Refusal(f"run {run.id} of '{name}' has no evidence, or gating it was interrupted", tip=tip)
    proof, sha256 = found
    if not proof.passed:
        lines = [f"run {run.id} of '{name}' was refused by the gate", *(check.line() for check in proof.failed)]
        raise Refusal(lines, tip="the report on the run shows why; train a better one")
    expected = {
        "model": (proof.model, name),
        "run": (proof.run, run.id),
        "artifact_sha256": (proof.artifact_sha256, run.tags.get("wharf.artifact_sha256")),
        "data_sha256": (proof.data_sha256, run.tags.get("wharf.data_sha256")),
        "commit": (proof.commit, run.tags.get("wharf.commit")),
    }
    for key, (said, known) in expected.items():
        if said != known:
            raise Refusal(f"run {run.id}: evidence.json: {key} is {said}, the run's is {known}", tip=tip)
    _, path = serving_file(store, run)
    actual = sha256_bytes(store.read(run, path))
    if actual != proof.artifact_sha256:
        raise Refusal(
            f"run {run.id}: {path}: sha256 is {actual}, the gate saw {proof.artifact_sha256}",
            tip="the artifact was changed after the gate; train again",
        )
    return sha256


def _create(store: Store, name: str, run: Run) -> Version:
    """Create a version of `run`, or return the one that somebody else created at the same time.

    MLflow cannot create "unless there is one of this run". So everybody creates, then looks: version numbers only
    grow and the number N+1 is given after N is visible, hence all see the same lowest one and keep that.
    """
    for pause in (0.3, 1.0, 0.0):
        try:
            store.create_version(name, run, f"run {run.id}", {"wharf.run": run.id})
        except Unavailable:  # a busy database; the version may have been made all the same
            if not pause:
                raise
            time.sleep(pause)
        if kept := _the_one(store, name, run.id):
            return kept
    raise Unavailable(f"MLflow at {shown_uri(store.uri)}: a version of run {run.id} was created but is not found")


def _the_one(store: Store, name: str, run_id: str) -> Version | None:
    """Return the version of a run that counts, deleting unfinished doubles that a race left behind."""
    # A version that a person made by hand has no such tag and is left alone.
    ours = [version for version in store.versions_of_run(name, run_id) if version.tags.get("wharf.run") == run_id]
    if not ours:
        return None
    complete = [version for version in ours if "wharf.verdict" in version.tags]
    kept = (complete or ours)[0]
    for double in ours:
        if double.number > kept.number and double not in complete:
            store.delete_version(name, double.number)
    return kept


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of the model")
    parser.add_argument("--run", help="MLflow run id (default: the newest finished run)")
    parser.add_argument("--json", action="store_true", help="print the facts of the version as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    with step(f"register {options.model}") as progress:
        number = register(workspace, options.model, options.run)
        progress.note = f"version {number}"
    known = asdict(facts(workspace, options.model, number))
    print(json.dumps(known, indent=2) if options.json else table(["FACT", "VALUE"], list(known.items())))
    return 0
