"""What runs on the cluster and how it is: Argo CD's word on sync and health, the pods' on what really serves.

One look takes a handful of requests, whatever the number of models, plus one or two for each that is not well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ci.cluster import access as cluster_access
from ci.cluster import pods as pod_state
from ci.cluster.access import Access
from ci.cluster.kube import Kube
from ci.cluster.nudge import nudge
from ci.cluster.pods import UNREADY, Pod, one_line
from ci.cluster.wanted import Key, Wanted, wanted
from ci.errors import WharfError
from ci.status import Application
from ci.workspace import Workspace

Json = Mapping[str, Any]

APPLICATION, APPLICATION_SET = "argoproj.io/v1alpha1/Application", "argoproj.io/v1alpha1/ApplicationSet"
ROOT = "modelwharf"  # the application that brings the projects and application sets
_SERVER = "app.kubernetes.io/part-of=modelwharf,app.kubernetes.io/component=model-server"
_CONTROLLERS = {  # without it …
    "argocd-application-controller": "nothing is synced, and what is shown may be old",
    "argocd-repo-server": "new commits do not reach the cluster",
    "argocd-redis": "new commits do not reach the cluster",
    "argocd-applicationset-controller": "new releases get no Application, and removed ones stay",
}
_NEVER = {"ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"}  # tried again and again, in vain
_LOOKED_INTO = 8  # of so many that are not well, log or events are asked for; an outage has one cause, not hundreds


@dataclass(frozen=True)
class ClusterApplication(Application):
    """An application with what only a cluster has."""

    namespace: str = ""
    revision: str = ""  # the commit that Argo CD has synced
    pods: tuple[Pod, ...] = ()


@dataclass(frozen=True)
class _Seen:
    """One look at the cluster."""

    access: Access
    applications: Mapping[Key, Json]
    sets: Mapping[str, Json]
    pods: Mapping[Key, list[Pod]]
    deployments: Mapping[Key, Json]
    services: Mapping[Key, Json]
    controllers: Sequence[Json]


def applications(workspace: Workspace) -> list[Application]:
    """Return every application that git or Argo CD knows, in no particular order.

    Raises Unavailable when the API server, or the server of the git repository, does not answer.
    """
    access = cluster_access.require(workspace)
    kube = client(access)
    with ThreadPoolExecutor(8) as pool:
        seen = _explain(pool, kube, _look(pool, kube, access, namespace_of(workspace)))
    git = wanted(workspace)  # after the look: a commit that is pushed meanwhile must not look like an old one
    older, strange = git.behind((key, _revision(app)) for key, app in seen.applications.items())
    keys = sorted({*seen.applications, *git.folders, *git.versions})
    without = [key for key in git.folders if key not in seen.applications]
    nudge(kube, namespace_of(workspace), seen.applications, seen.deployments, older, without)
    return [_judge(seen, git, key, key in older, key in strange) for key in keys]


def hopeless(application: Application) -> str:
    """Return why the version that git wants will not start by itself; empty while it may."""
    pods = application.pods if isinstance(application, ClusterApplication) else ()
    ill = [pod for pod in pods if pod.version == application.desired and not pod.ready and pod.reason]
    return next((pod.reason for pod in ill if pod.restarts > 1 or pod.status in _NEVER), "")


def fault(workspace: Workspace) -> str:
    """Say why what Argo CD says cannot be relied on; empty when it is fine."""
    access = cluster_access.require(workspace)
    try:
        return _controllers_fault(client(access).list("v1/Pod", namespace_of(workspace)))[1]
    except WharfError as error:
        return error.lines[0]


def revision(workspace: Workspace) -> str:
    """Return the commit of main that the root application has synced, empty when it has none yet."""
    found = client(cluster_access.require(workspace)).get(APPLICATION, ROOT, namespace_of(workspace))
    return _revision(found) if found else ""


def client(access: Access) -> Kube:
    """Return a connection to the cluster; the same one each time, as long as its kubeconfig is the same."""
    path = access.kubeconfig
    return _client(path, access.context, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=2)
def _client(path: Path, context: str, _written: int) -> Kube:
    return Kube(path, context)


def namespace_of(workspace: Workspace) -> str:
    import yaml

    # Settings that are being edited must not hide what runs, so the checked reader is not for here.
    try:
        return str(yaml.safe_load((workspace.gitops / "argocd.yaml").read_text(encoding="utf-8"))["namespace"])
    except (OSError, KeyError, TypeError, ValueError, yaml.YAMLError):
        return "argocd"


# -- looking -----------------------------------------------------------------------------------------------------------


def _look(pool: ThreadPoolExecutor, kube: Kube, access: Access, namespace: str) -> _Seen:
    def all_of(kind: str, where: str | None, labels: str | None = None) -> Future[list[dict[str, Any]]]:
        return pool.submit(kube.list, kind, where, labels)

    apps, sets = all_of(APPLICATION, namespace, "modelwharf.io/model"), all_of(APPLICATION_SET, namespace)
    controllers = all_of("v1/Pod", namespace)
    pods, services = all_of("v1/Pod", None, _SERVER), all_of("v1/Service", None, _SERVER)
    deployments = all_of("apps/v1/Deployment", None, _SERVER)
    by_key: dict[Key, list[Pod]] = defaultdict(list)
    for pod in pods.result():
        by_key[_labelled(pod, "app.kubernetes.io/name")].append(pod_state.read(pod))
    return _Seen(
        access,
        {_labelled(app, "modelwharf.io/model"): app for app in apps.result()},
        {each["metadata"]["name"]: each for each in sets.result()},
        by_key,
        {_labelled(each, "app.kubernetes.io/name"): each for each in deployments.result()},
        {_labelled(each, "app.kubernetes.io/name"): each for each in services.result()},
        controllers.result(),
    )


def _labelled(obj: Json, model: str) -> Key:
    labels = obj["metadata"].get("labels") or {}
    return str(labels.get(model, "")), str(labels.get("modelwharf.io/environment", ""))


def _health_of(app: Json | None) -> str:
    return str((((app or {}).get("status") or {}).get("health") or {}).get("status") or "Missing")


def _revision(app: Json) -> str:
    return str(((app.get("status") or {}).get("sync") or {}).get("revision") or "")


# -- judging -----------------------------------------------------------------------------------------------------------


def _judge(seen: _Seen, git: Wanted, key: Key, older: bool, strange: bool) -> ClusterApplication:
    """Put together what git, Argo CD and the pods say of one model in one environment."""
    model, environment = key
    app, deployment, pods = seen.applications.get(key), seen.deployments.get(key), seen.pods.get(key, [])
    desired = git.versions.get(key)
    status: Json = (app or {}).get("status") or {}
    sync = str((status.get("sync") or {}).get("status") or "Unknown")
    health = _health_of(app)
    why = _problem(status, deployment, pods, sync) if app else _no_application(seen, environment)
    blind, broken = _controllers_fault(seen.controllers)
    if app is None:
        sync, health = "OutOfSync", "Missing"
    elif "deletionTimestamp" in app["metadata"] or key not in git.folders:
        sync, why = "OutOfSync", "is being removed: git has no release of it any more"
    elif strange:
        sync, why = (
            "Unknown",
            f"runs commit {_revision(app)[:10]}, which is not in git: does Argo CD follow another repository?",
        )
    elif older and sync == "Synced":
        sync, why = "OutOfSync", why or f"Argo CD has not seen commit {git.commit[:10]} yet"
    if blind:  # nobody updates what Argo CD once said
        sync, health = "Unknown", _health(deployment)
    serving = _serving(pods, desired)
    listed = tuple(sorted(pods, key=lambda pod: (pod.since, pod.name)))
    ready = sum(pod.ready for pod in pods if pod.version == desired)
    well = sync == "Synced" and health == "Healthy"
    if not well and not why and pods and sync == "Synced":
        why = f"version {desired} is rolling out: {ready} of its {_replicas(deployment)} pods are ready"
    if why and None not in (serving, desired) and (serving != desired or health != "Healthy"):
        why = f"{why}; version {serving} goes on serving"
    return ClusterApplication(
        model=model,
        environment=environment,
        target="cluster",
        version=serving,
        sync=sync,
        health=health,
        url=_url(seen, key),
        message=one_line("; ".join(filter(None, [broken, "" if well else why]))),
        desired=desired,
        restarts=sum(pod.restarts for pod in pods),
        since=pod_state.seconds((status.get("health") or {}).get("lastTransitionTime")),
        namespace=str((deployment or {}).get("metadata", {}).get("namespace", pods[0].namespace if pods else "")),
        revision=_revision(app or {}),
        pods=listed,
    )


def _serving(pods: Sequence[Pod], desired: int | None) -> int | None:
    """Return the version that answers: while two do, the one that is to go, because it is not over yet."""
    versions = {pod.version for pod in pods if pod.ready and pod.version is not None}
    others = versions - {desired}
    return max(others) if others else next(iter(versions), None)


def _replicas(deployment: Json | None) -> int:
    return int(((deployment or {}).get("spec") or {}).get("replicas", 1))


def _health(deployment: Json | None) -> str:
    """Return the health by the Deployment's own word, for when Argo CD cannot be asked."""
    if deployment is None:
        return "Missing"
    status, wants = deployment.get("status") or {}, _replicas(deployment)
    if int(status.get("updatedReplicas", 0)) >= wants and int(status.get("availableReplicas", 0)) >= wants:
        return "Healthy"
    return "Degraded" if _deadline(deployment) or not status.get("availableReplicas") else "Progressing"


def _url(seen: _Seen, key: Key) -> str:
    """Return the address: on the node itself kube-proxy leads to the Service's; elsewhere it is the name inside."""
    service = seen.services.get(key)
    if service is None:
        return ""
    metadata, address = service["metadata"], str(service["spec"].get("clusterIP", ""))
    if seen.access.provider == "node" and address not in ("", "None"):
        return f"http://{address}"
    return f"http://{metadata['name']}.{metadata['namespace']}.svc"


# -- reasons -----------------------------------------------------------------------------------------------------------


def _problem(status: Json, deployment: Json | None, pods: Sequence[Pod], sync: str) -> str:
    """Return why an application is not Synced and Healthy, the cause before what follows from it."""
    reasons = [_condition(status), _operation(status) if sync != "Synced" else "", _refused_pods(deployment)]
    newest_first = sorted(pods, key=lambda pod: -pod.since)
    reasons += [pod.reason for pod in newest_first]
    reasons += [_deadline(deployment), _resource(status)]
    return next(filter(None, reasons), "")


def _condition(status: Json) -> str:
    """Return the first fault that Argo CD has with the application itself (it cannot compare, its spec is wrong…)."""
    for condition in status.get("conditions") or []:
        kind = str(condition.get("type", ""))
        if kind.endswith("Error") or kind in {"SharedResourceWarning", "RepeatedResourceWarning"}:
            return f"{kind}: {_cause(str(condition.get('message', '')))}"
    return ""


def _operation(status: Json) -> str:
    """Return why the last sync failed, or is being tried again."""
    operation = status.get("operationState") or {}
    if operation.get("phase") not in {"Failed", "Error"} and not operation.get("retryCount"):
        return ""
    for resource in (operation.get("syncResult") or {}).get("resources") or []:
        if resource.get("status") == "SyncFailed" or resource.get("hookPhase") in {"Failed", "Error"}:
            return f"{resource['kind']} {resource['name']}: {_cause(str(resource.get('message', '')))}"
    return f"the sync fails: {_cause(str(operation.get('message', '')))}"


def _refused_pods(deployment: Json | None) -> str:
    """Return why pods cannot even be made: the quota, the Pod Security Standard, an admission webhook."""
    for condition in ((deployment or {}).get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return f"its pods are refused: {condition.get('message', '')}"
    return ""


def _deadline(deployment: Json | None) -> str:
    for condition in ((deployment or {}).get("status") or {}).get("conditions") or []:
        if condition.get("type") == "Progressing" and condition.get("reason") == "ProgressDeadlineExceeded":
            limit = ((deployment or {}).get("spec") or {}).get("progressDeadlineSeconds", 600)
            return f"did not become ready within {limit} seconds"
    return ""


def _resource(status: Json) -> str:
    for resource in status.get("resources") or []:
        health = resource.get("health") or {}
        if health.get("status") not in (None, "Healthy"):
            more = f": {health['message']}" if health.get("message") else ""
            return f"{resource.get('kind')} {resource.get('name')} is {health['status']}{more}"
    return ""


def _cause(message: str) -> str:
    """Return gRPC's and Argo CD's chains of causes without the calls in front."""
    return message.rpartition("desc = ")[2]


def _no_application(seen: _Seen, environment: str) -> str:
    """Return why a release that is in git has no Application."""
    found = seen.sets.get(environment)
    if found is None:
        return f"there is no ApplicationSet '{environment}' in the cluster: is gitops/root.yaml applied and synced?"
    for condition in (found.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "ErrorOccurred" and condition.get("status") == "True":
            return f"its ApplicationSet fails: {_cause(str(condition.get('message', '')))}"
    return "Argo CD has not made its Application yet"


def _controllers_fault(pods: Sequence[Json]) -> tuple[bool, str]:
    """Return whether Argo CD is blind, and which part of it does not run in what words."""
    ready: dict[str, list[Pod]] = {name: [] for name in _CONTROLLERS}
    for pod in pods:
        name = str((pod["metadata"].get("labels") or {}).get("app.kubernetes.io/name", ""))
        name = "argocd-redis" if name.startswith("argocd-redis") else name  # highly available Redis has other names
        if name in ready:
            ready[name].append(pod_state.read(pod))
    gone = [name for name, there in ready.items() if not any(pod.ready for pod in there)]
    if not gone:
        return False, ""
    if len(gone) == len(_CONTROLLERS) and not any(ready.values()):
        return True, "Argo CD does not run in this cluster; `make cluster` repairs it"
    first = gone[0]
    why = next((pod.reason or pod.status for pod in ready[first]), "it has no pod")
    return first == "argocd-application-controller", f"{first} does not run ({why}): {_CONTROLLERS[first]}"


def _explain(pool: ThreadPoolExecutor, kube: Kube, seen: _Seen) -> _Seen:
    """Add to the newest pod that is not ready what it wrote last, or what the kubelet has against it."""
    ill = [
        (key, max(unready, key=lambda pod: (bool(pod.reason), pod.since)))
        for key, app in seen.applications.items()
        if _health_of(app) != "Healthy" and (unready := [pod for pod in seen.pods.get(key, []) if not pod.ready])
    ][:_LOOKED_INTO]
    pods = dict(seen.pods)
    for (key, pod), more in zip(ill, pool.map(lambda each: _more(kube, each[1]), ill), strict=True):
        if more:
            reason = one_line(f"{pod.reason}: {more}" if pod.reason else more)
            pods[key] = [replace(each, reason=reason) if each is pod else each for each in pods[key]]
    return replace(seen, pods=pods)


def _more(kube: Kube, pod: Pod) -> str:
    try:
        if pod.crashed:
            return _last_words(kube, pod)
        # The kubelet's own reason is the cause; an event only repeats it.
        return _last_warning(kube, pod) if pod.reason in ("", UNREADY) else ""
    except WharfError:
        return ""  # it is gone meanwhile, or we may not read events: what is known stands


def _last_words(kube: Kube, pod: Pod) -> str:
    """Return the last line that a container wrote before it ended."""
    for previous in (False, True):
        try:
            lines = [line for line in kube.logs(pod.name, pod.namespace, tail=20, previous=previous) if line.strip()]
        except WharfError:
            lines = []  # there is none (any more): the other one may be there
        if lines:
            return lines[-1]
    return ""


def _last_warning(kube: Kube, pod: Pod) -> str:
    events = kube.list("v1/Event", pod.namespace, fields=f"involvedObject.name={pod.name},type=Warning")
    if not pod.reason:  # that a probe fails is part of starting
        events = [event for event in events if event.get("reason") != "Unhealthy"]
    events.sort(key=lambda event: str(event.get("lastTimestamp") or event.get("eventTime") or ""))
    return str(events[-1].get("message", "")) if events else ""
