"""What git wants: the rendered manifests of one revision, read from the bare repository without a checkout."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ci.release import NO_VALUE
from ci.shell import git

RENDERED = "gitops/rendered"


class Key(NamedTuple):
    """One application: a model in an environment."""

    environment: str
    model: str

    def __str__(self) -> str:
        return f"{self.environment}/{self.model}"


@dataclass(frozen=True)
class Desired:
    """What one Deployment asks for, as far as it matters to a process."""

    key: Key
    version: int
    image: str
    env: tuple[tuple[str, str], ...]  # in the order of the manifest
    ready_path: str = "/readyz"
    live_path: str = "/livez"
    deadline: float = 120.0  # seconds until a process that is not Ready is given up (progressDeadlineSeconds)

    @property
    def digest(self) -> str:
        """Name everything that a running process depends on: another digest needs another process."""
        return hashlib.sha256(repr((self.key, self.image, self.env)).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        return {
            "environment": self.key.environment,
            "model": self.key.model,
            "version": self.version,
            "image": self.image,
            "env": [list(pair) for pair in self.env],
            "ready_path": self.ready_path,
            "live_path": self.live_path,
            "deadline": self.deadline,
        }

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Desired:
        """Read what `to_json` wrote; raises KeyError, TypeError or ValueError on anything else."""
        return Desired(
            key=Key(raw["environment"], raw["model"]),
            version=int(raw["version"]),
            image=raw["image"],
            env=tuple((str(name), str(value)) for name, value in raw["env"]),
            ready_path=raw["ready_path"],
            live_path=raw["live_path"],
            deadline=float(raw["deadline"]),
        )


@dataclass(frozen=True)
class Fault:
    """Manifests that cannot be followed, and why."""

    message: str


class Manifests:
    """Reads `gitops/rendered/` of a revision; a file that did not change is parsed once."""

    def __init__(self, repository: Path) -> None:
        self.repository = repository
        self._parsed: dict[str, Any] = {}  # blob id: its Deployment, None, or the Fault

    def read(self, revision: str) -> dict[Key, Desired | Fault]:
        """Return what `revision` wants for every model and environment; raises CommandFailed when git cannot read."""
        listing = git(self.repository, "ls-tree", "-r", "-z", revision, f"{RENDERED}/")
        files: dict[Key, dict[str, str]] = {}  # key: {path: blob id}
        for entry in listing.split("\0"):
            if not entry:
                continue
            meta, path = entry.split("\t", 1)
            parts = path.split("/")
            if len(parts) == 5 and path.endswith((".yaml", ".yml")):
                files.setdefault(Key(parts[2], parts[3]), {})[path] = meta.split()[2]
        self._parse({blob for paths in files.values() for blob in paths.values()})
        return {key: self._desired(key, paths) for key, paths in sorted(files.items())}

    def _parse(self, blobs: set[str]) -> None:
        texts = _contents(self.repository, sorted(blobs - self._parsed.keys()))
        self._parsed = {blob: known for blob, known in self._parsed.items() if blob in blobs}
        self._parsed |= {blob: _deployment(text) for blob, text in texts.items()}

    def _desired(self, key: Key, paths: Mapping[str, str]) -> Desired | Fault:
        found = [(path, self._parsed[blob]) for path, blob in paths.items() if self._parsed[blob] is not None]
        if len(found) != 1:
            return Fault(f"{RENDERED}/{key}: has {len(found) or 'no'} Deployment{'s' if found else ''}, needs one")
        path, deployment = found[0]
        if isinstance(deployment, Fault):
            return Fault(f"{path}: {deployment.message}")
        try:
            return from_deployment(key, deployment)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            return Fault(f"{path}: not a Deployment of a model: {type(error).__name__} {error}")


def from_deployment(key: Key, deployment: Mapping[str, Any]) -> Desired:
    """Read what matters to a process from a Deployment.

    Variables without a plain value (taken from the pod or a secret) exist on a cluster only and are left out.
    Raises KeyError, IndexError, TypeError or ValueError when a part that is needed is missing.
    """
    spec = deployment["spec"]
    container = spec["template"]["spec"]["containers"][0]
    env = {str(entry["name"]): str(entry["value"]) for entry in container.get("env", []) if "value" in entry}
    return Desired(
        key=key,
        version=int(env["WHARF_VERSION"]),
        image=str(container["image"]),
        env=tuple(env.items()),
        ready_path=_probe_path(container, "readinessProbe", "/readyz"),
        live_path=_probe_path(container, "livenessProbe", "/livez"),
        deadline=float(spec.get("progressDeadlineSeconds", 120)),
    )


def _probe_path(container: Mapping[str, Any], probe: str, default: str) -> str:
    return str(container.get(probe, {}).get("httpGet", {}).get("path", default))


def _deployment(text: str) -> Any:
    """Return the Deployment in `text`, None when it holds another kind, a Fault when it is no YAML."""
    try:
        documents = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, *NO_VALUE) as error:
        return Fault(f"not valid YAML: {str(error).splitlines()[0]}")
    return next((d for d in documents if isinstance(d, dict) and d.get("kind") == "Deployment"), None)


def _contents(repository: Path, blobs: list[str]) -> dict[str, str]:
    """Return the text of each blob, by one git process."""
    if not blobs:
        return {}
    done = subprocess.run(
        ["git", "cat-file", "--batch"],
        cwd=repository,
        input="".join(f"{blob}\n" for blob in blobs).encode(),
        capture_output=True,
        check=True,
    )
    texts: dict[str, str] = {}
    at = 0
    for blob in blobs:
        newline = done.stdout.index(b"\n", at)
        size = int(done.stdout[at:newline].split()[2])
        texts[blob] = done.stdout[newline + 1 : newline + 1 + size].decode(errors="replace")
        at = newline + 1 + size + 1  # each content ends with a line break of its own
    return texts
