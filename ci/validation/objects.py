"""Manifests: valid against the schemas, and images by digest only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from ci import schemas
from ci.rendering import argocd
from models.spec import StrictLoader, yaml_fault

_MACHINE = ("gitops/environments/", "gitops/releases/", "gitops/rendered/")
_DIGEST = re.compile(r"\S+@sha256:[0-9a-f]{64}")
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")


def check_files(root: Path, paths: Sequence[str]) -> tuple[list[str], int]:
    """Check the manifests among `paths` that people write; return the faults and how many files were checked."""
    mine = [path for path in paths if is_manifest(path)]
    faults: list[str] = []
    for path in mine:
        try:
            faults += text_faults(path, (root / path).read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            faults.append(f"{path}: is not UTF-8 text")
    return faults, len(mine)


def is_manifest(path: str) -> bool:
    """Tell whether `path` is a manifest that a person writes: YAML or JSON under gitops/ besides our own formats."""
    if not path.startswith("gitops/") or path.startswith(_MACHINE) or argocd.is_mine(path):
        return False
    return path.endswith((".yaml", ".yml", ".json"))


def text_faults(path: str, text: str) -> list[str]:
    """Return the faults of every document in the text of a manifest."""
    try:
        documents: list[Any] = list(yaml.load_all(text, Loader=StrictLoader))
    except yaml.YAMLError as error:
        return [f"{path}{yaml_fault(error)}"]
    except RecursionError:
        return [f"{path}: is nested too deeply"]
    return [fault for document in documents if document is not None for fault in faults(path, document)]


def faults(path: str, manifest: object) -> list[str]:
    """Return the faults of one manifest, each with `path` in front."""
    found = schemas.faults(manifest)
    found += [
        f"{where}: '{image}' has no digest (pin it as name@sha256:…; a tag can mean another image tomorrow)"
        for where, image in _images(manifest, "")
        if not _DIGEST.fullmatch(image)
    ]
    return [f"{path}: {fault}" for fault in found]


def _images(value: object, where: str) -> list[tuple[str, str]]:
    """Return (place, image) of every container, in whatever kind it stands."""
    found: list[tuple[str, str]] = []
    if isinstance(value, dict):
        for key, entry in cast("dict[str, object]", value).items():
            if key in _CONTAINERS and isinstance(entry, (list, tuple)):
                for index, container in enumerate(cast("Sequence[object]", entry)):
                    if isinstance(container, dict) and "image" in container:
                        place = f"{where}{key}.{index}.image"
                        found.append((place, str(cast("dict[str, object]", container)["image"])))
            if isinstance(entry, (dict, list, tuple)):
                found += _images(cast("object", entry), f"{where}{key}.")
    elif isinstance(value, (list, tuple)):
        for index, entry in enumerate(cast("Sequence[object]", value)):
            found += _images(entry, f"{where}{index}.")
    return found
