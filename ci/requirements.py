"""Export a part of `uv.lock` as pip requirements with hashes: what one serving image installs and nothing else.

The lock is read and not resolved again, so this needs neither uv nor a package index.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.markers import Marker

from ci.errors import Mistake

# What every bento serves with; the rest follows from its artifact.
SERVING = ("bentoml", "httptools", "numpy", "orjson", "uvicorn", "uvloop")
BY_FORMAT = {"onnx": ("onnxruntime",), "skops": ("scikit-learn", "skops"), "npz": ()}


def export(lock: Path, names: Iterable[str], python: str, groups: Iterable[str] = ()) -> str:
    """Return pinned requirements, with the sha256 of every file, for `names` and all they need.

    `names` must be dependencies of the project itself or of its dependency groups `groups`; `python` ("3.11") and Linux
    decide the markers, whatever runs this. Raises Mistake when the lock cannot be read or lacks a name.
    """
    packages = _packages(lock)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for package in packages:
        by_name.setdefault(package["name"], []).append(package)
    declared = _declared(packages, lock, groups)
    own = {name: [d for d in declared if d["name"] == name] for name in sorted(set(names))}
    for name, found in own.items():
        if not found:
            raise Mistake(f"{lock.name}: '{name}' is not a dependency of the project", tip="add it to pyproject.toml")
    environment = _environment(python)
    chosen: dict[str, dict[str, Any]] = {}
    waiting = [dependency for found in own.values() for dependency in found]
    seen = set[tuple[str, tuple[str, ...]]]()
    while waiting:
        dependency = waiting.pop()
        extras = tuple(dependency.get("extra", ()))
        if not _applies(dependency, environment, extras) or (dependency["name"], extras) in seen:
            continue
        seen.add((dependency["name"], extras))
        package = _package(by_name, dependency, environment, lock.name)
        chosen[package["name"]] = package
        waiting.extend(package.get("dependencies", ()))
        for extra in extras:
            waiting.extend(package.get("optional-dependencies", {}).get(extra, ()))
    return "".join(_line(chosen[name]) for name in sorted(chosen))


def direct(lock: Path) -> list[str]:
    """Return the names of the project's own dependencies; raises Mistake when the lock cannot be read."""
    return sorted({str(each["name"]) for each in _project(_packages(lock), lock)["dependencies"]})


def group(lock: Path, name: str) -> list[str] | None:
    """Return the names in one of the project's dependency groups, None when it has no such group."""
    groups: dict[str, list[dict[str, Any]]] = _project(_packages(lock), lock).get("dev-dependencies", {})
    return sorted({str(each["name"]) for each in groups[name]}) if name in groups else None


def _packages(lock: Path) -> list[dict[str, Any]]:
    try:
        return tomllib.loads(lock.read_text(encoding="utf-8"))["package"]
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise Mistake(f"{lock.name}: cannot be read: {error}", tip="restore it with `git checkout uv.lock`") from None


def _project(packages: list[dict[str, Any]], lock: Path) -> dict[str, Any]:
    project = next((p for p in packages if {"editable", "virtual"} & p["source"].keys()), None)
    if project is None:
        raise Mistake(f"{lock.name}: does not hold the project itself", tip="write it again with `uv lock`")
    return project


def _declared(packages: list[dict[str, Any]], lock: Path, groups: Iterable[str]) -> list[dict[str, Any]]:
    """Return what the project itself asks for, that of its dependency groups `groups` included."""
    project = _project(packages, lock)
    known: dict[str, list[dict[str, Any]]] = project.get("dev-dependencies", {})
    return [*project["dependencies"], *(each for name in groups for each in known.get(name, ()))]


def _environment(python: str) -> dict[str, str]:
    return {
        "python_version": python,
        "python_full_version": f"{python}.99",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
    }


def _applies(dependency: dict[str, Any], environment: dict[str, str], extras: Iterable[str]) -> bool:
    marker = dependency.get("marker")
    if marker is None:
        return True
    return any(Marker(marker).evaluate({**environment, "extra": extra}) for extra in ("", *extras))


def _package(
    by_name: dict[str, list[dict[str, Any]]], dependency: dict[str, Any], environment: dict[str, str], where: str
) -> dict[str, Any]:
    """Return the locked package that `dependency` means."""
    found = by_name.get(dependency["name"], [])
    if "version" in dependency:
        found = [package for package in found if package["version"] == dependency["version"]]
    elif len(found) > 1:
        found = [p for p in found if any(Marker(m).evaluate(environment) for m in p.get("resolution-markers", ()))]
    if len(found) != 1:
        raise Mistake(f"{where}: '{dependency['name']}' has no single version", tip="write it again with `uv lock`")
    return found[0]


def _line(package: dict[str, Any]) -> str:
    """Return the requirement with the hashes of its files, source first, in a fixed order."""
    files = [package["sdist"]] if "sdist" in package else []
    hashes = sorted({file["hash"] for file in [*files, *package.get("wheels", ())] if "hash" in file})
    lines = [f"{package['name']}=={package['version']}", *(f"    --hash={text}" for text in hashes)]
    return " \\\n".join(lines) + "\n"
