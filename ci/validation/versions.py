"""Releases against the registry: the version exists, its evidence passed, and every digest is the registry's."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from ci.errors import Mistake, Refusal, Unavailable
from ci.registry import VersionFacts, evidence, facts
from ci.release import Release, path_of
from ci.validation.repository import Repository
from ci.workspace import Workspace

_THREADS = 16


def check(
    workspace: Workspace, repository: Repository, base: str, releases: Sequence[Release], deep: bool
) -> list[str]:
    """Return the faults of `releases` against the registry of `workspace`.

    `base`: the revision whose history counts as released before. `deep`: also fetch each evidence document, whose
    bytes must have the recorded digest and say passed. When the registry does not answer, that is the fault: nothing
    passes unseen, and nothing is remembered from an earlier check.
    """
    by_version: defaultdict[tuple[str, int], list[Release]] = defaultdict(list)
    for release in releases:
        by_version[release.model, release.version].append(release)
    down = Event()

    def look(key: tuple[str, int]) -> VersionFacts | Mistake | Unavailable | Refusal | None:
        if down.is_set():
            return None
        try:
            found = facts(workspace, *key)
            if deep and (fault := _evidence_fault(workspace, found)):
                return Refusal(fault)
            return found
        except Unavailable as error:
            down.set()
            return error
        except (Mistake, Refusal) as error:
            return error

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="registry") as pool:
        answers = dict(zip(by_version, pool.map(look, by_version), strict=True))
    outage = next((answer for answer in answers.values() if isinstance(answer, Unavailable)), None)
    if outage is not None:
        hint = outage.tip or "run this again when it answers"
        return [f"gitops/releases/: cannot be checked against the registry: {outage.lines[0]} ({hint})"]
    faults: list[str] = []
    other_image: list[Release] = []
    for key, pins in by_version.items():
        answer = answers[key]
        for pin in pins:
            where = path_of(pin.environment, pin.model)
            if isinstance(answer, VersionFacts):
                faults += [f"{where}: {fault}" for fault in _differences(pin, answer)]
                if (pin.bento, pin.image) != (answer.bento, answer.image):
                    other_image.append(pin)
            elif answer is not None:
                faults += [f"{where}: version: {line}" for line in answer.lines]
    return faults + _image_faults(repository, base, other_image, answers)


def _evidence_fault(workspace: Workspace, known: VersionFacts) -> str:
    document = evidence(workspace, known.model, known.version)  # raises Refusal when the bytes are not those
    if document.get("verdict") != "passed":
        return f"the evidence of version {known.version} says '{document.get('verdict')}', not 'passed'"
    for key, said in {"model": known.model, "run": known.run, "artifact_sha256": known.artifact}.items():
        if document.get(key) != said:
            return f"the evidence of version {known.version} is of {key} {document.get(key)!r}, not {said!r}"
    return ""


def _differences(pin: Release, known: VersionFacts) -> list[str]:
    expected = {
        "run": known.run,
        "artifact": f"sha256:{known.artifact}",
        "evidence": f"sha256:{known.evidence}",
        "data": f"sha256:{known.data}",
        "commit": known.commit,
    }
    faults = [
        f"{name}: is {getattr(pin, name)}, the registry says {said} for version {pin.version}"
        for name, said in expected.items()
        if getattr(pin, name) != said
    ]
    if known.verdict != "passed":
        faults.append(f"version: {pin.version} did not pass the gate, its verdict is '{known.verdict}'")
    return faults


def _image_faults(
    repository: Repository, base: str, pins: Sequence[Release], answers: Mapping[tuple[str, int], object]
) -> list[str]:
    """Refuse an image that the registry does not name, unless a release pinned it for this version before.

    A version can be built anew, for a patched base image: the registry then names the new one, while what runs, and
    what is promoted from there or rolled back to, keeps the one that was tested.
    """
    if not pins:
        return []
    folder = repository.root / "gitops/releases"
    names = sorted({path.parent.name for path in folder.glob("*/*.yaml")})
    paths = [path_of(environment, pin.model) for pin in pins for environment in names]
    before = repository.past(base, paths)
    allowed = {(old.model, old.version, old.bento, old.image) for path in sorted(before) for old in before[path]}
    faults: list[str] = []
    for pin in pins:
        known = answers[pin.model, pin.version]
        if (pin.model, pin.version, pin.bento, pin.image) in allowed or not isinstance(known, VersionFacts):
            continue
        where, what = path_of(pin.environment, pin.model), known.image or "no image: `wharf build` was not run"
        faults.append(f"{where}: image: is {pin.image}, the registry says {what} for version {pin.version}")
    return faults
