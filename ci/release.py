"""The release: the pin `gitops/releases/<environment>/<model>.yaml` that says which version runs there."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from ci.errors import Mistake, did_you_mean

# What PyYAML raises besides its own error for a value that is none of its kind, such as the date 2024-99-99.
NO_VALUE = (ValueError, KeyError, AttributeError, OverflowError)
_HEADER = "# Written by `wharf promote` and `wharf rollback`; edit nothing here by hand.\n"
_PATTERNS = {
    "model": r"[a-z][a-z0-9]{0,39}",
    "environment": r"[a-z][a-z0-9]{0,19}",
    "run": r"[0-9a-f]{32}",
    "bento": r"[a-z][a-z0-9]{0,39}:[0-9a-f]{16}",
    "image": r"[a-z0-9][a-z0-9.:/_-]*@sha256:[0-9a-f]{64}",
    "artifact": r"sha256:[0-9a-f]{64}",
    "evidence": r"sha256:[0-9a-f]{64}",
    "data": r"sha256:[0-9a-f]{64}",
    "commit": r"[0-9a-f]{40}",
}


@dataclass(frozen=True)
class Release:
    """Everything that a promotion changes, in one small file."""

    model: str
    environment: str
    version: int  # exact number in the MLflow registry
    run: str  # MLflow run id
    bento: str  # tag of the bento, `<model>:<first 16 hex of its content hash>`
    image: str  # `<repository>@sha256:<64 hex>`; on the local target the digest is the bento's content hash
    artifact: str  # `sha256:<64 hex>` of the file that is loaded for serving
    evidence: str  # `sha256:<64 hex>` of evidence.json
    data: str  # `sha256:<64 hex>` of the dataset
    commit: str  # the commit that the version was trained at


def path_of(environment: str, model: str) -> str:
    """Return the path of a release, relative to the root of the repository."""
    return f"gitops/releases/{environment}/{model}.yaml"


def dump(release: Release) -> str:
    """Return the text of the release file."""
    return _HEADER + yaml.safe_dump(asdict(release), sort_keys=False)


def parse(text: str, where: str) -> Release:
    """Read the text of a release named `where` in errors; raises Mistake with one line a fault."""
    try:
        raw: Any = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    except (yaml.YAMLError, *NO_VALUE) as error:
        raise Mistake(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise Mistake(f"{where}: must be a mapping")
    faults = _faults(raw)
    if faults:
        raise Mistake([f"{where}: {fault}" for fault in faults], tip="releases are written by `wharf promote` only")
    return Release(**raw)


def load(root: Path, environment: str, model: str) -> Release | None:
    """Return the release of `model` in `environment` from the files under `root`, None where there is none."""
    path = root / path_of(environment, model)
    return parse(path.read_text(encoding="utf-8"), path_of(environment, model)) if path.is_file() else None


def _faults(raw: Mapping[str, Any]) -> list[str]:
    known = [field.name for field in fields(Release)]
    faults = [f"{key}: unknown key{did_you_mean(str(key), known)}" for key in raw if key not in known]
    for name in known:
        value = raw.get(name)
        if name not in raw:
            faults.append(f"{name}: is missing")
        elif name == "version":
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                faults.append(f"version: must be a whole number from 1, not {value!r}")
        elif not isinstance(value, str) or not re.fullmatch(_PATTERNS[name], value):
            faults.append(f"{name}: must match {_PATTERNS[name]}, not {value!r}")
    return faults
