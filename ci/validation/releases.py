"""Specs, releases and their rendering: everything about one model that its own files tell."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ci import release
from ci.environments import Environment
from ci.errors import Mistake, did_you_mean
from ci.names import taken_by
from ci.release import Release, path_of
from ci.render import RENDERED, folder_of, texts
from ci.rendering import manifests
from ci.validation import objects
from models.spec import ModelSpec, SpecError
from models.spec import load as load_spec

_HINT = "run `wharf render` and commit what it writes"


@dataclass
class Findings:
    """What was found, and how much was looked at."""

    faults: list[str] = field(default_factory=list[str])
    releases: list[Release] = field(default_factory=list[Release])
    specs: int = 0
    manifests: int = 0

    def add(self, other: Findings) -> None:
        self.faults += other.faults
        self.releases += other.releases
        self.specs += other.specs
        self.manifests += other.manifests


def check_models(
    root: Path, environments: Mapping[str, Environment] | None, models: Sequence[tuple[str, set[str]]]
) -> Findings:
    """Check the spec of each model and its releases in these environments.

    `environments` None: they are broken, which is reported elsewhere; then nothing can be rendered.
    """
    found = Findings()
    for name, released in models:
        found.add(_check_model(root, environments, name, released))
    return found


def _check_model(root: Path, environments: Mapping[str, Environment] | None, name: str, released: set[str]) -> Findings:
    found = Findings()
    spec: ModelSpec | None = None
    if (root / "models" / name / "model.yaml").is_file():
        found.specs = 1
        try:
            spec = load_spec(root / "models" / name)
            found.faults += _missing_parts(root, spec)
            if module := taken_by(root, name):
                found.faults.append(
                    f"models/{name}/model.yaml: name: '{name}' is the name of {module} as well (choose another)"
                )
        except SpecError as error:
            found.faults += error.lines
    elif (root / "bentos" / name / "service.py").is_file():
        found.faults.append(f"bentos/{name}/: there is no model '{name}' (add models/{name}/model.yaml or remove it)")
    for environment in sorted(released):
        found.add(_check_release(root, environments, environment, name, spec))
    return found


def _missing_parts(root: Path, spec: ModelSpec) -> list[str]:
    module = spec.training.entry.partition(":")[0]
    parts = [f"models/{spec.name}/data.py", f"models/{spec.name}/{module}.py", f"bentos/{spec.name}/service.py"]
    hint = f"`wharf new` shows what belongs to a model; '{spec.name}' has its model.yaml only"
    return [f"{part}: is missing ({hint})" for part in parts if not (root / part).is_file()]


def _check_release(
    root: Path,
    environments: Mapping[str, Environment] | None,
    environment: str,
    model: str,
    spec: ModelSpec | None,
) -> Findings:
    found = Findings()
    where = path_of(environment, model)
    there = _there(root, environment, model)
    try:
        pin = release.load(root, environment, model)
    except Mistake as error:
        found.faults += error.lines
        return found
    except UnicodeDecodeError:
        found.faults.append(f"{where}: is not UTF-8 text")
        return found
    if pin is None:
        found.faults += [f"{path}: belongs to no release ({_HINT})" for path in there]
        return found
    found.releases.append(pin)
    if not (root / "models" / model / "model.yaml").is_file():
        found.faults.append(f"{where}: there is no model '{model}' (models/{model}/model.yaml)")
    if environments is None:
        return found
    if environment not in environments:
        found.faults.append(
            f"{where}: there is no environment '{environment}'{did_you_mean(environment, environments)}"
        )
        return found
    settings = environments[environment]
    found.faults += [f"{where}: {fault}" for fault in _disagreements(pin, environment, model, settings)]
    if spec is not None and (pin.model, pin.environment) == (spec.name, environment):
        _check_rendering(found, there, pin, spec, settings)
    return found


def _disagreements(pin: Release, environment: str, model: str, settings: Environment) -> list[str]:
    faults: list[str] = []
    if pin.model != model:
        faults.append(f"model: is '{pin.model}', the file's name says '{model}'")
    if pin.environment != environment:
        faults.append(f"environment: is '{pin.environment}', the folder's name says '{environment}'")
    if pin.bento.partition(":")[0] != pin.model:
        faults.append(f"bento: '{pin.bento}' is not one of model '{pin.model}'")
    repository = pin.image.partition("@sha256:")[0]
    if repository != f"{settings.registry}/{pin.model}":
        faults.append(
            f"image: '{repository}' is not '{settings.registry}/{pin.model}' "
            f"(the registry is set in gitops/environments/{settings.name}.yaml)"
        )
    return faults


def _there(root: Path, environment: str, model: str) -> dict[str, str | None]:
    """Return the rendered files of a release by their path; None for one that is not UTF-8 text."""
    folder = root / folder_of(environment, model)
    found: dict[str, str | None] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            try:
                found[str(path.relative_to(root))] = path.read_bytes().decode("utf-8")
            except UnicodeDecodeError:
                found[str(path.relative_to(root))] = None
    return found


def _check_rendering(
    found: Findings, there: Mapping[str, str | None], pin: Release, spec: ModelSpec, environment: Environment
) -> None:
    folder = folder_of(pin.environment, pin.model)
    try:
        fresh = manifests.all_of(pin, spec, environment)
    except Mistake as error:
        found.faults += error.lines
        return
    wanted = {f"{folder}/{name}": text for name, text in texts(fresh).items()}
    for path, text in wanted.items():
        found.manifests += 1
        is_ = there.get(path)
        if path not in there:
            found.faults.append(f"{path}: is missing ({_HINT})")
        elif is_ is None:
            found.faults.append(f"{path}: is not UTF-8 text ({_HINT})")
        elif is_ != text:
            found.faults.append(f"{path}: {first_difference(is_, text)} ({_HINT})")
            found.faults += objects.text_faults(path, is_)
        else:  # the same bytes: what was rendered need not be parsed again
            found.faults += objects.faults(path, fresh[Path(path).name])
    for path in there.keys() - wanted.keys():
        found.faults.append(f"{path}: is not part of a fresh render ({_HINT})")


def first_difference(is_: str, fresh: str) -> str:
    """Say in which line two texts differ first, and how."""
    left, right = is_.split("\n"), fresh.split("\n")
    for number, (mine, theirs) in enumerate(zip(left, right, strict=False), start=1):
        if mine != theirs:
            return f"line {number}: is {mine.strip()!r}, a fresh render gives {theirs.strip()!r}"
    if len(left) > len(right):
        return f"line {len(right)}: is {left[len(right) - 1].strip()!r}, a fresh render ends before it"
    return f"line {len(left)}: ends here, a fresh render goes on with {right[len(left) - 1].strip()!r}"


def stray_files(paths: Sequence[str]) -> list[str]:
    """Return faults for files in the machine's folders that no command writes."""
    faults: list[str] = []
    for path in paths:
        if path.startswith("gitops/releases/"):
            shape = r"gitops/releases/([^/]+/[^/]+\.yaml|\.gitkeep)"
        elif path.startswith(f"{RENDERED}/"):
            shape = rf"{RENDERED}/([^/]+/[^/]+/[^/]+|\.gitkeep)"
        else:
            continue
        if not re.fullmatch(shape, path):
            faults.append(f"{path}: does not belong here: only wharf writes in this folder (remove it)")
    return faults
