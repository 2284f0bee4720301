"""Check manifests against the schemas of Kubernetes, offline, and of the custom kinds in `ci/schemas/crds/`.

The schemas are those that the package kubernetes-validate carries, generated from the API's own OpenAPI document;
they are run by jsonschema-rs, because the check of one Deployment takes 24 ms with that package's own validator and
0.01 ms so. Strict: a field that the schema does not name is a fault, as with `kubectl --validate=strict`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import yaml

from ci.errors import did_you_mean

# The minor version whose schemas are used: the one that the cluster target runs.
KUBERNETES = "1.34"
CRDS = Path(__file__).parent / "crds"

_DEFINITIONS = "https://kubernetes.io/api/_definitions.json"


@dataclass(frozen=True)
class _Schema:
    """A compiled schema with what is needed to explain a fault."""

    validator: Any
    documents: tuple[Mapping[str, Any], ...]  # where paths of a fault may lead: the kind's own, the shared definitions


def faults(manifest: object, crds: Path = CRDS) -> list[str]:
    """Return one line `path.to.field: what is wrong` a fault of a manifest, none for a good one.

    A kind without a schema is a fault: a check that cannot run has failed.
    """
    if not isinstance(manifest, Mapping):
        return ["must be a mapping with apiVersion, kind and metadata"]
    missing = [key for key in ("apiVersion", "kind") if not isinstance(manifest.get(key), str)]
    if missing:
        return [f"{key}: is missing" for key in missing]
    version, kind = str(manifest["apiVersion"]), str(manifest["kind"])
    schema = _builtin(version, kind) or _custom(crds).get((version, kind))
    if schema is None:
        known = [name for _, name in _custom(crds)] + ["Deployment", "Service", "Namespace", "ConfigMap"]
        return [
            f"kind: there is no schema for {version} {kind}{did_you_mean(kind, known)} "
            f"(a custom kind needs its CustomResourceDefinition in ci/schemas/crds/)"
        ]
    found = [line for error in schema.validator.iter_errors(manifest) for line in _lines(error, schema)]
    metadata = manifest.get("metadata")
    if not isinstance(metadata, Mapping) or not (metadata.get("name") or metadata.get("generateName")):
        found.append("metadata.name: is missing")
    return found


@cache
def _folder() -> Path:
    """Return the folder of the bundled schemas without importing the package, which takes a quarter of a second."""
    package = importlib.util.find_spec("kubernetes_validate")
    if package is None or package.origin is None:
        raise FileNotFoundError("the package kubernetes-validate is not installed")
    return Path(package.origin).parent / "kubernetes-json-schema" / f"v{KUBERNETES}.0-local-strict"


@cache
def _definitions() -> tuple[Mapping[str, Any], Any]:
    document = orjson.loads((_folder() / "_definitions.json").read_bytes())
    return document, jsonschema_rs.Registry([(_DEFINITIONS, document)], draft=jsonschema_rs.Draft202012)


@cache
def _builtin(version: str, kind: str) -> _Schema | None:
    # The files are named after the kind and the first word of the group: deployment-apps-v1.json, service-v1.json.
    # The schema itself says which apiVersion it is for, so another group with the same first word does not pass.
    group, _, number = version.rpartition("/")
    name = "-".join(part for part in (kind, group.split(".")[0], number) if part).lower()
    path = _folder() / f"{name}.json"
    if not re.fullmatch(r"[a-z0-9-]+", name) or not path.is_file():
        return None
    document = orjson.loads(path.read_bytes())
    if "x-kubernetes-group-version-kind" not in document:
        return None  # a part of other kinds, such as Container
    shared, registry = _definitions()
    return _Schema(jsonschema_rs.Draft202012Validator(document, registry=registry), (document, shared))


@cache
def _custom(folder: Path) -> dict[tuple[str, str], _Schema]:
    """Return the schemas of the CustomResourceDefinitions in `folder` by (apiVersion, kind)."""
    found: dict[tuple[str, str], _Schema] = {}
    for path in sorted([*folder.glob("*.y*ml"), *folder.glob("*.json")]):
        for definition in _documents(path):
            if not isinstance(definition, dict) or definition.get("kind") != "CustomResourceDefinition":
                continue
            spec: Any = definition["spec"]
            for version in spec["versions"]:
                document = _strict(version["schema"]["openAPIV3Schema"])
                document["properties"] = {
                    **document.get("properties", {}),
                    **{key: {"type": "string"} for key in ("apiVersion", "kind")},
                    "metadata": {"type": "object"},
                }
                validator = jsonschema_rs.Draft202012Validator(document)
                found[f"{spec['group']}/{version['name']}", spec["names"]["kind"]] = _Schema(validator, (document,))
    return found


def _documents(path: Path) -> list[Any]:
    if path.suffix == ".json":  # a large definition is read some hundred times as fast so
        return [orjson.loads(path.read_bytes())]
    with path.open(encoding="utf-8") as stream:
        return list(yaml.load_all(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _strict(schema: Any) -> Any:
    """Return a structural schema that refuses fields it does not name, where the API server would drop them."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    strict: dict[str, Any] = {
        key: {name: _strict(part) for name, part in value.items()} if key == "properties" else _strict(value)
        for key, value in schema.items()
        if key not in {"default", "example", "enum"}
    } | {key: schema[key] for key in ("enum",) if key in schema}
    closed = "properties" in schema and "additionalProperties" not in schema
    if closed and not schema.get("x-kubernetes-preserve-unknown-fields"):
        strict["additionalProperties"] = False
    if schema.get("x-kubernetes-int-or-string"):
        strict.pop("type", None)
        strict["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if schema.get("nullable") and isinstance(strict.get("type"), str):
        strict["type"] = [strict["type"], "null"]
    return strict


def _lines(error: Any, schema: _Schema) -> list[str]:
    path = [str(part) for part in error.instance_path]
    where = ".".join(path) or "manifest"
    unexpected: list[str] | None = getattr(error.kind, "unexpected", None)
    if unexpected is not None:
        known = _names_at(list(error.schema_path)[:-1], schema)
        return [f"{'.'.join([*path, key])}: unknown field{did_you_mean(key, known)}" for key in unexpected]
    if error.kind.name == "required":
        return [f"{'.'.join([*path, str(error.kind.property)])}: is missing"]
    if error.kind.name == "type":
        types = " or ".join(sorted(name for name in error.kind.types if name != "null"))
        return [f"{where}: must be of type {types}, not {error.instance!r}"[:200]]
    return [f"{where}: {error.message}"[:200]]


def _names_at(path: list[str | int], schema: _Schema) -> list[str]:
    """Return the fields that are allowed at a place in the schema, for 'did you mean'."""
    for document in schema.documents:
        at: Any = document
        try:
            for part in path:
                at = at[part]
        except (KeyError, IndexError, TypeError):
            continue
        if isinstance(at, dict) and "properties" in at:
            return list(at["properties"])
    return []
