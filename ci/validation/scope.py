"""What a check has to look at: everything, or what a change touches."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# A change here changes the rules or what is rendered: everything is checked anew.
_CODE = re.compile(
    r"ci/(environments|release|render|validate)\.py|ci/(rendering|schemas|validation)/.*|models/(spec|strict_yaml)\.py"
)
_RELEASE = re.compile(r"gitops/releases/([^/]+)/([^/]+)\.yaml")
_RENDERED = re.compile(r"gitops/rendered/([^/]+)/([^/]+)/.*")
_ENVIRONMENT = re.compile(r"gitops/environments/([^/]+)\.yaml")
# What Argo CD is bootstrapped from, and what that follows from.
_BOOTSTRAP = re.compile(r"gitops/((argocd|root)\.yaml|(projects|appsets|environments)/.*)|models/[^/]+/model\.yaml")
_MODEL = re.compile(r"models/([^/]+)/[^/]+")
_BENTO = re.compile(r"bentos/([^/]+)/[^/]+")


@dataclass(frozen=True)
class Scope:
    """The parts to check."""

    files: list[str]  # every file of the tree, or those that changed and are there
    models: dict[str, set[str]]  # model: environments whose release and rendering are checked; its spec always is
    pins: set[tuple[str, str]]  # (environment, model) of the releases that changed, or of all of them
    order: set[tuple[str, str]]  # those whose environment order is checked
    everything: bool
    bootstrap: bool  # whether what Argo CD is bootstrapped from is checked


def full(root: Path, files: list[str]) -> Scope:
    """Return the scope of a check of the whole tree."""
    models: defaultdict[str, set[str]] = defaultdict(set)
    for path in files:
        found = _MODEL.fullmatch(path) or _BENTO.fullmatch(path)
        if found and path.endswith(("/model.yaml", "/service.py")):
            models[found[1]] |= set()
    pins = _pins(files)
    for environment, model in pins | _rendered(files):
        models[model].add(environment)
    return Scope(files, dict(models), pins, pins, everything=True, bootstrap=True)


def narrow(root: Path, paths: Iterable[str], all_files: list[str] | None) -> Scope:
    """Return the scope of a change of `paths`; `all_files` is given when `touches_code(paths)` says so.

    A changed model.yaml brings all its renderings with it, a changed environment all of its releases, a change of
    the rules everything but the secrets and the registry, which depend on the changed files alone.
    """
    changed = sorted(paths)
    here = [path for path in changed if (root / path).is_file() or (root / path).is_symlink()]
    pins = _pins(changed)
    if all_files is not None:
        whole = full(root, all_files)
        return Scope(here, whole.models, pins & whole.pins, whole.order, everything=True, bootstrap=True)
    models: defaultdict[str, set[str]] = defaultdict(set)
    for environment, model in pins | _rendered(changed):
        models[model].add(environment)
    order = set(pins)
    for path in changed:
        if found := _MODEL.fullmatch(path) or _BENTO.fullmatch(path):
            # Python files right in models/ or bentos/ have no folder and do not match.
            models[found[1]] |= _released(root, found[1]) if path.endswith("/model.yaml") else set()
        elif found := _ENVIRONMENT.fullmatch(path):
            for release in (root / "gitops/releases" / found[1]).glob("*.yaml"):
                models[release.stem].add(found[1])
                order.add((found[1], release.stem))
    there = {name: environments for name, environments in models.items() if environments or _is_model(root, name)}
    bootstrap = any(_BOOTSTRAP.fullmatch(path) for path in changed)
    return Scope(here, there, pins, order, everything=False, bootstrap=bootstrap)


def touches_code(paths: Iterable[str]) -> bool:
    """Tell whether a change of `paths` changes the rules or the rendering itself."""
    return any(_CODE.fullmatch(path) for path in paths)


def _pins(paths: Iterable[str]) -> set[tuple[str, str]]:
    return {(found[1], found[2]) for path in paths if (found := _RELEASE.fullmatch(path))}


def _rendered(paths: Iterable[str]) -> set[tuple[str, str]]:
    return {(found[1], found[2]) for path in paths if (found := _RENDERED.fullmatch(path))}


def _released(root: Path, model: str) -> set[str]:
    return {path.parent.name for path in (root / "gitops/releases").glob(f"*/{model}.yaml")}


def _is_model(root: Path, name: str) -> bool:
    return (root / "models" / name / "model.yaml").is_file() or (root / "bentos" / name / "service.py").is_file()
