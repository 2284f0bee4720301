"""`wharf lineage pod/NAME`: begin at a running pod, and check every link back to the data and the commit.

pod → image digest as the kubelet reports it → Deployment → Argo CD's Application and the commit that it synced →
rendered manifest → release, and from there as for any release (see `ci.lineage`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from ci import history
from ci.cluster import access as cluster_access
from ci.cluster import argocd
from ci.cluster import pods as pod_state
from ci.cluster.kube import Kube
from ci.cluster.night import age
from ci.cluster.wanted import folder_of
from ci.errors import Mistake, Refusal, did_you_mean
from ci.gating.champion import Released
from ci.git import gitcommit
from ci.lineage import Lineage, Link, checked, links_of
from ci.release import Release, parse, path_of
from ci.workspace import Workspace

Json = Mapping[str, Any]

_FACTS = ("commit", "run", "version", "data", "evidence", "artifact", "bento")
_TRACKING = "argocd.argoproj.io/tracking-id"


@dataclass(frozen=True)
class _Running:
    """A pod with what it says it is."""

    pod: Json
    namespace: str
    name: str
    model: str
    environment: str


@dataclass(frozen=True)
class _Origin:
    """The release that a pod was made from, where git has it."""

    release: Release
    revision: str  # the commit that this is read at
    current: bool  # it is the one that Argo CD has synced; else one before it


def lineage(workspace: Workspace, namespace: str | None, name: str) -> Lineage:
    """Return every link from a running pod back, checked.

    Raises Mistake (no such pod, or none of a model), Unavailable (the cluster, MLflow, the registry or the git server).
    """
    access = cluster_access.require(workspace)
    kube = argocd.client(access)
    running = _find(kube, namespace, name)
    main = history.revision(workspace)  # with its objects fetched
    deployment = kube.get("apps/v1/Deployment", running.model, running.namespace)
    application = _application(kube, argocd.namespace_of(workspace), running, deployment)
    synced = str((((application or {}).get("status") or {}).get("sync") or {}).get("revision") or "")
    origin = _origin(workspace, running, synced, main)
    links = [
        _pod(running),
        checked("kubelet", _digest(running) or "none", lambda: _kubelet(running, origin)),
        checked("deployment", running.model, lambda: _deployment(running, deployment, origin)),
        checked(
            "application", _name(application, running), lambda: _synced(workspace, application, synced, main, origin)
        ),
        checked(
            "rendered", folder_of((running.model, running.environment)), lambda: _rendered(workspace, running, origin)
        ),
    ]
    if origin:
        links += links_of(workspace, Released(origin.release, origin.revision, "the main branch"))
    return Lineage(running.model, running.environment, tuple(links), f"{running.namespace}/{running.name}")


# -- finding -----------------------------------------------------------------------------------------------------------


def _find(kube: Kube, namespace: str | None, name: str) -> _Running:
    if namespace:
        found = kube.get("v1/Pod", name, namespace)
        listed = [found] if found else []
    else:
        listed = kube.list("v1/Pod", fields=f"metadata.name={name}")
    if len(listed) > 1:
        spaces = ", ".join(sorted(pod["metadata"]["namespace"] for pod in listed))
        raise Mistake(f"there are pods '{name}' in {spaces}", tip=f"name one: `wharf lineage pod/{name} -n NAMESPACE`")
    if not listed:
        known = [
            pod["metadata"]["name"] for pod in kube.list("v1/Pod", namespace, "app.kubernetes.io/part-of=modelwharf")
        ]
        where = f" in {namespace}" if namespace else ""
        raise Mistake(f"no pod '{name}'{where}{did_you_mean(name, known)}", tip="`wharf status MODEL` lists the pods")
    labels = listed[0]["metadata"].get("labels") or {}
    model, environment = labels.get("app.kubernetes.io/name"), labels.get("modelwharf.io/environment")
    if labels.get("app.kubernetes.io/component") != "model-server" or not model or not environment:
        raise Mistake(f"pod {name} serves no model: it lacks the labels that `wharf render` writes")
    return _Running(listed[0], listed[0]["metadata"]["namespace"], name, str(model), str(environment))


def _application(kube: Kube, namespace: str, running: _Running, deployment: Json | None) -> Json | None:
    """Return the Application that Argo CD says it made the Deployment for."""
    tracked = str(((deployment or {}).get("metadata") or {}).get("annotations", {}).get(_TRACKING, ""))
    name = tracked.partition(":")[0] or f"{running.model}-{running.environment}"
    return kube.get(argocd.APPLICATION, name, namespace)


def _origin(workspace: Workspace, running: _Running, synced: str, main: str) -> _Origin | None:
    """Return the release whose image the pod runs: the synced one, else the newest one of those before it."""
    wanted = _digest(running) or _image(running.pod).rpartition("@")[2]
    root, path = workspace.root, path_of(running.environment, running.model)
    text = gitcommit.read(root, synced, path) if synced else None
    if text is not None and (release := parse(text, path)).image.endswith(f"@{wanted}"):
        return _Origin(release, synced, True)
    past = history.entries(root, main, running.model, running.environment)
    for entry in reversed(past):
        if entry.release and entry.release.image.endswith(f"@{wanted}"):
            return _Origin(entry.release, entry.commit, False)
    return None


def _digest(running: _Running) -> str:
    return pod_state.read(running.pod).image


def _image(pod: Json) -> str:
    return str(pod["spec"]["containers"][0].get("image", ""))


def _name(application: Json | None, running: _Running) -> str:
    return str(application["metadata"]["name"]) if application else f"{running.model}-{running.environment}"


# -- checking ----------------------------------------------------------------------------------------------------------


def _pod(running: _Running) -> Link:
    found = pod_state.read(running.pod)
    state = "ready" if found.ready else f"not ready: {found.reason}" if found.reason else "not ready"
    detail = f"{found.status} on {found.node or 'no node'}, {state}, {age(found.since, time.time())} old"
    return Link("pod", True, f"{running.namespace}/{running.name}", detail)


def _kubelet(running: _Running, origin: _Origin | None) -> str:
    digest = _digest(running)
    if not digest:
        raise Refusal("the kubelet has not started a container of it: there is nothing that runs")
    asked = _image(running.pod).rpartition("@")[2]
    if asked != digest:
        raise Refusal(f"runs {digest}, the pod asks for {asked}")
    if origin is None:
        raise Refusal("no release of this model, now or before, has this image")
    return f"what runs is what version {origin.release.version} was released with"


def _required(origin: _Origin | None) -> _Origin:
    if origin is None:
        raise Refusal("there is no release to compare with")
    return origin


def _deployment(running: _Running, deployment: Json | None, origin: _Origin | None) -> str:
    release = _required(origin).release
    version = pod_state.version_of(running.pod["metadata"])
    if version != release.version:
        raise Refusal(f"the pod's label says version {version}, its image is that of version {release.version}")
    if deployment is None:
        raise Refusal(f"there is no Deployment {running.model} in {running.namespace}")
    owners = [str(each["name"]) for each in running.pod["metadata"].get("ownerReferences") or []]
    if not any(owner.startswith(f"{running.model}-") for owner in owners):
        raise Refusal(f"the pod belongs to {', '.join(owners) or 'nobody'}, not to this Deployment")
    annotations = deployment["metadata"].get("annotations") or {}
    said = annotations.get("modelwharf.io/version")
    if not _required(origin).current and said != str(release.version):
        return f"is at version {said} now; this pod is still one of version {release.version}"
    _agree({name: (annotations.get(f"modelwharf.io/{name}"), str(getattr(release, name))) for name in _FACTS})
    return "its annotations name run, data, commit, evidence, artifact and bento of the release"


def _agree(pairs: Mapping[str, tuple[Any, str]]) -> None:
    for name, (known, said) in pairs.items():
        if known != said:
            raise Refusal(f"{name} is {known or 'missing'}, the release says {said}")


def _synced(workspace: Workspace, application: Json | None, synced: str, main: str, origin: _Origin | None) -> str:
    if application is None:
        raise Refusal("Argo CD has no such Application: somebody else made this pod")
    if not synced:
        raise Refusal("Argo CD has not synced it from any commit")
    source = application["spec"].get("source") or {}
    labels = application["metadata"].get("labels") or {}
    folder = folder_of((str(labels.get("modelwharf.io/model")), str(labels.get("modelwharf.io/environment"))))
    if source.get("path") != folder:
        raise Refusal(f"it follows {source.get('path')}, not {folder}")
    if not _holds(workspace, main, synced):
        raise Refusal(f"it has synced commit {synced[:12]}, which is not in the main branch")
    changed = [
        each.get("kind")
        for each in (application.get("status") or {}).get("resources") or []
        if each.get("status") == "OutOfSync" and each.get("kind") == "Deployment"
    ]
    if changed and origin and origin.current:
        raise Refusal(f"the Deployment in the cluster is not the one of commit {synced[:12]}")
    return f"synced commit {synced[:12]} of {source.get('repoURL')}"


def _holds(workspace: Workspace, main: str, commit: str) -> bool:
    from ci.shell import CommandFailed, git

    try:
        git(workspace.root, "merge-base", "--is-ancestor", commit, main, env=gitcommit.PLAIN)
    except CommandFailed:
        return False
    return True


def _rendered(workspace: Workspace, running: _Running, origin: _Origin | None) -> str:
    """Compare what the pod was started with and the manifest in git: image, command and variables."""
    found = _required(origin)
    path = f"{folder_of((running.model, running.environment))}/deployment.yaml"
    text = gitcommit.read(workspace.root, found.revision, path)
    if text is None:
        raise Refusal(f"commit {found.revision[:12]} has no {path}")
    wanted: Json = yaml.safe_load(text)["spec"]["template"]["spec"]["containers"][0]
    runs: Json = running.pod["spec"]["containers"][0]
    if wanted["image"] != runs.get("image"):
        raise Refusal(f"the pod's image is {runs.get('image')}, commit {found.revision[:12]} has {wanted['image']}")
    for key in ("command", "args"):
        if wanted.get(key) != runs.get(key):
            raise Refusal(f"the pod's {key} is not the one of commit {found.revision[:12]}")
    _same_variables(wanted.get("env") or [], runs.get("env") or [], found.revision)
    return f"image, command and variables of the pod are those of commit {found.revision[:12]}"


def _same_variables(wanted: Sequence[Json], runs: Sequence[Json], commit: str) -> None:
    there = {each["name"]: each.get("value") for each in runs}
    asked = {each["name"]: each.get("value") for each in wanted}
    for name in sorted({*there, *asked}):
        if there.get(name) != asked.get(name):
            raise Refusal(f"the pod's variable {name} is not the one of commit {commit[:12]}")
