"""What Argo CD is bootstrapped from: as a fresh render gives it, valid against Argo CD's own schemas, and by our rules.

The rules hold for what is in the files, whoever wrote them: a mistake in `ci.rendering.argocd` must not pass because
the files agree with it. Rules for what only the comparison can tell (that each environment has its project) are not
repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import yaml

from ci.environments import Environment
from ci.errors import Mistake
from ci.rendering import argocd
from ci.validation import objects
from models.spec import StrictLoader

_HINT = "run `wharf render` and commit what it writes"
_WILD = frozenset("*?[{!")  # what Argo CD reads as a pattern, or as "all but"


def check(root: Path, environments: Mapping[str, Environment] | None) -> tuple[list[str], int]:
    """Return the faults and how many files were checked; `environments` None: broken, which is reported elsewhere."""
    texts: dict[str, str] = {}
    faults: list[str] = []
    for path in argocd.there(root):
        try:
            texts[path] = (root / path).read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            faults.append(f"{path}: is not UTF-8 text")
    settings: argocd.Settings | None = None
    broken = environments is None
    try:
        settings = argocd.load(root)
    except Mistake as error:
        faults += error.lines
        broken = True
    for path, text in texts.items():
        faults += objects.text_faults(path, text)
        faults += [f"{path}: {fault}" for document in _documents(text) for fault in rules(document, settings)]
    if settings is None and not broken:
        faults += [
            f"{path}: there is no {argocd.SETTINGS} that it could be written from (bring it back, or remove both)"
            for path, text in texts.items()
            if any(document.get("kind") in _RULES for document in _documents(text))
        ]
    if settings is not None and environments is not None:
        faults += _differences(root, settings, list(environments.values()), texts)
    return faults, len(texts)


def _documents(text: str) -> list[dict[str, Any]]:
    """Return the mappings in a text; one that cannot be read is reported by the check against the schemas."""
    try:
        documents: list[Any] = list(yaml.load_all(text, Loader=StrictLoader))
    except (yaml.YAMLError, RecursionError):
        return []
    return [cast("dict[str, Any]", document) for document in documents if isinstance(document, dict)]


def _differences(
    root: Path, settings: argocd.Settings, environments: Sequence[Environment], there: Mapping[str, str]
) -> list[str]:
    from ci.validation.releases import first_difference

    try:
        wanted = argocd.texts(settings, environments, argocd.namespaces(root, environments))
    except Mistake as error:
        return error.lines
    faults = [f"{path}: is missing ({_HINT})" for path in wanted if not (root / path).is_file()]
    faults += [f"{path}: is not part of a fresh render ({_HINT})" for path in argocd.there(root) if path not in wanted]
    for path, text in wanted.items():
        if path in there and there[path] != text:
            faults.append(f"{path}: {first_difference(there[path], text)} ({_HINT})")
    return faults


def rules(document: Mapping[str, Any], settings: argocd.Settings | None) -> list[str]:
    """Return one line `path.to.field: what is wrong` a fault of an Application, AppProject or ApplicationSet."""
    rule = _RULES.get(str(document.get("kind")))
    if rule is None:
        return []
    return rule(document, settings)


def _project(document: Mapping[str, Any], _: argocd.Settings | None) -> list[str]:
    spec = _mapping(document, "spec")
    faults = [
        f"spec.{where}: '{value}' is a pattern (name each one, or a project lets in more than it says)"
        for where, value in _allowed(spec)
        if _WILD & set(str(value))
    ]
    faults += [
        f"spec.clusterResourceWhitelist.{index}: a kind without a namespace is nothing that a release may hold"
        for index, _ in enumerate(_list(spec, "clusterResourceWhitelist"))
    ]
    if _mapping(document, "metadata").get("name") == argocd.DEFAULT:
        faults += [
            f"spec.{key}: must be an empty list: the project '{argocd.DEFAULT}' is locked"
            for key in ("sourceRepos", "sourceNamespaces", "destinations", "clusterResourceWhitelist")
            if spec.get(key) != []
        ]
        if {"group": "*", "kind": "*"} not in _list(spec, "namespaceResourceBlacklist"):
            faults.append(f"spec.namespaceResourceBlacklist: must name '*' of '*': '{argocd.DEFAULT}' is locked")
    elif not _list(spec, "namespaceResourceWhitelist"):
        faults.append("spec.namespaceResourceWhitelist: is empty or missing; where it is missing every kind is allowed")
    return faults


def _allowed(spec: Mapping[str, Any]) -> list[tuple[str, object]]:
    """Return (place, value) of everything in a project that allows something."""
    found = [
        (f"{key}.{index}", value)
        for key in ("sourceRepos", "sourceNamespaces")
        for index, value in enumerate(_list(spec, key))
    ]
    for key in ("destinations", "clusterResourceWhitelist", "namespaceResourceWhitelist"):
        for index, entry in enumerate(_list(spec, key)):
            if isinstance(entry, dict):
                found += [(f"{key}.{index}.{name}", value) for name, value in cast("dict[str, object]", entry).items()]
    return found


def _application_set(document: Mapping[str, Any], settings: argocd.Settings | None) -> list[str]:
    spec = _mapping(document, "spec")
    faults: list[str] = []
    if spec.get("goTemplate") is not True or "missingkey=error" not in _list(spec, "goTemplateOptions"):
        faults.append(
            "spec.goTemplateOptions: needs 'missingkey=error', with goTemplate: true "
            "(or a name that is missing becomes '<no value>' in an application)"
        )
    if "templatePatch" in spec:
        faults.append("spec.templatePatch: is not allowed: it can change what is checked in spec.template")
    if _mapping(spec, "syncPolicy").get("preserveResourcesOnDeletion"):
        faults.append("spec.syncPolicy.preserveResourcesOnDeletion: must be false, or a removed release runs on")
    for index, generator in enumerate(_list(spec, "generators")):
        generated = cast("Mapping[str, Any]", generator) if isinstance(generator, dict) else {}
        if set(generated) != {"git"}:
            faults.append(f"spec.generators.{index}: must be a git generator: only what is in git is deployed")
            continue
        faults += _other_repository(_mapping(generated, "git"), f"spec.generators.{index}.git.", settings)
    return faults + _deployed(_mapping(_mapping(spec, "template"), "spec"), "spec.template.spec.", settings)


def _application(document: Mapping[str, Any], settings: argocd.Settings | None) -> list[str]:
    return _deployed(_mapping(document, "spec"), "spec.", settings)


def _deployed(spec: Mapping[str, Any], where: str, settings: argocd.Settings | None) -> list[str]:
    """Judge the spec of an Application, or of the template of some."""
    faults: list[str] = []
    if spec.get("project") == argocd.DEFAULT:
        faults.append(f"{where}project: '{argocd.DEFAULT}' is locked (name the project of the environment)")
    policy = _mapping(spec, "syncPolicy")
    automated = _mapping(policy, "automated")
    if not automated or automated.get("enabled") is False:
        faults.append(f"{where}syncPolicy.automated: is missing or switched off, so a commit would not be deployed")
    else:
        faults += [
            f"{where}syncPolicy.automated.{key}: must be true: what runs is what git says"
            for key in ("prune", "selfHeal")
            if automated.get(key) is not True
        ]
    if not _mapping(policy, "retry").get("limit"):
        faults.append(f"{where}syncPolicy.retry.limit: is missing or 0, so a commit that failed once is given up")
    if "sources" in spec:
        faults.append(f"{where}sources: is not allowed (one 'source', from this repository)")
    return faults + _other_repository(_mapping(spec, "source"), f"{where}source.", settings)


def _other_repository(source: Mapping[str, Any], where: str, settings: argocd.Settings | None) -> list[str]:
    if settings is None or source.get("repoURL") == settings.repository:
        return []
    return [f"{where}repoURL: is {source.get('repoURL')!r}, {argocd.SETTINGS} says {settings.repository!r}"]


def _mapping(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the mapping under `key`, an empty one where there is something else, which the schema reports."""
    entry = value.get(key)
    return cast("Mapping[str, Any]", entry) if isinstance(entry, dict) else {}


def _list(value: Mapping[str, Any], key: str) -> Sequence[object]:
    entry = value.get(key)
    return cast("Sequence[object]", entry) if isinstance(entry, list) else []


_RULES: Mapping[str, Callable[[Mapping[str, Any], argocd.Settings | None], list[str]]] = {
    "Application": _application,
    "ApplicationSet": _application_set,
    "AppProject": _project,
}
