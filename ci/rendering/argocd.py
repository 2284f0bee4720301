"""What Argo CD is bootstrapped from: `gitops/root.yaml`, `gitops/projects/` and `gitops/appsets/`.

Written by `wharf render` from the settings in `gitops/argocd.yaml`, the environments, and the teams in the models'
contracts, so that the address of the repository stands in one place and a project names exactly the namespaces and
kinds that releases have. Without the settings file there is nothing to write: a tree for the local target alone.
docs/adr/0003-argocd-bootstrap.md tells why each part is as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from ci.environments import DnsLabel, Environment, load_all
from ci.errors import Mistake
from ci.rendering.manifest_text import Json, dump
from ci.workspace import Workspace, load_spec
from models.spec import SpecError, Strict, read

SETTINGS = "gitops/argocd.yaml"
ROOT = "gitops/root.yaml"
PROJECTS = "gitops/projects"
APPSETS = "gitops/appsets"
RENDERED = "gitops/rendered"

# The project of the root application, and the one that Argo CD makes by itself; no environment may have these names.
ROOT_NAME = "modelwharf"
DEFAULT = "default"

# (group, kind) of everything that `ci.rendering.manifests` writes; a test compares the two.
KINDS = (
    ("", "Service"),
    ("", "ServiceAccount"),
    ("apps", "Deployment"),
    ("autoscaling", "HorizontalPodAutoscaler"),
    ("networking.k8s.io", "NetworkPolicy"),
    ("policy", "PodDisruptionBudget"),
)

Manifest = Mapping[str, Json]

_API = "argoproj.io/v1alpha1"
_IN_CLUSTER = "https://kubernetes.default.svc"  # Argo CD's name for the cluster that it runs in
_HEADER = (
    f"# Written by `wharf render` from {SETTINGS}, the environments and the models' teams; edit nothing here by hand.\n"
)
_LABELS = {"app.kubernetes.io/part-of": "modelwharf", "app.kubernetes.io/managed-by": "modelwharf"}
# With it a project is not deleted before the last of its applications, which need it to delete what they deployed.
_FINALIZER = "resources-finalizer.argocd.argoproj.io"

_PATH = r"[A-Za-z0-9._~/%+-]+"
_REPOSITORY = re.compile(
    rf"(https?|ssh)://([A-Za-z0-9._-]+@)?[A-Za-z0-9.-]+(:[0-9]+)?/{_PATH}"  # a user, never a password
    rf"|[A-Za-z0-9._-]+@[A-Za-z0-9.-]+:{_PATH}"
    rf"|file:///{_PATH}"
)


class Settings(Strict):
    """Where Argo CD finds this repository, where it runs, and where it deploys to."""

    repository: str
    branch: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] = "main"
    namespace: DnsLabel = "argocd"
    server: Annotated[str, Field(pattern=r"^https://[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~/-]*)?$")] = _IN_CLUSTER

    @field_validator("repository")
    @classmethod
    def _repository(cls, value: str) -> str:
        # Projects compare addresses by glob, so a '*' in here would let in more than this repository.
        if not _REPOSITORY.fullmatch(value):
            raise ValueError(
                f"'{value}' is no address of a git repository "
                "(https://…, ssh://…, user@host:path or file:///…; no password in it, no wildcard)"
            )
        return value


def parse(text: str) -> Settings:
    """Read the text of the settings file; raises Mistake with one line a fault."""
    try:
        return read(text, SETTINGS, Settings)
    except SpecError as error:
        raise Mistake(error.lines, tip=f"see the comments in {SETTINGS}") from None


def load(root: Path) -> Settings | None:
    """Return the settings of the repository at `root`, None where it has none; raises Mistake when they are broken."""
    try:
        return parse((root / SETTINGS).read_bytes().decode("utf-8"))
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise Mistake(f"{SETTINGS}: is not UTF-8 text") from None


def is_mine(path: str) -> bool:
    """Tell whether `path` (relative to the root) is the settings file or belongs to what is written from it."""
    return path in {SETTINGS, ROOT} or path.startswith((f"{PROJECTS}/", f"{APPSETS}/"))


def there(root: Path) -> list[str]:
    """Return the files that are there beside the settings file, whoever wrote them, sorted."""
    found = [path for folder in (PROJECTS, APPSETS) for path in (root / folder).rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(root)) for path in [*found, root / ROOT] if path.is_file())


def render(root: Path) -> dict[str, str]:
    """Return the text of every file by its path relative to `root`; nothing where there are no settings.

    Raises Mistake, one line a fault, for broken settings, environments or models' contracts.
    """
    settings = load(root)
    if settings is None:
        return {}
    environments = load_all(root)
    return texts(settings, environments, namespaces(root, environments))


def namespaces(root: Path, environments: Sequence[Environment]) -> dict[str, list[str]]:
    """Return for each environment the namespaces of all models, released or not, so that no promotion changes them.

    Raises Mistake, one line a fault, for broken contracts and for namespaces that are no DNS label.
    """
    faults: list[str] = []
    found: dict[str, set[str]] = {environment.name: set() for environment in environments}
    for path in sorted((root / "models").glob("*/model.yaml")):
        try:
            spec = load_spec(Workspace(root), path.parent.name)
            for environment in environments:
                found[environment.name].add(environment.namespace_of(spec.team, spec.name))
        except Mistake as error:
            faults += error.lines
    if faults:
        raise Mistake(list(dict.fromkeys(faults)), tip="`wharf validate` checks everything")
    return {name: sorted(names) for name, names in found.items()}


def texts(
    settings: Settings, environments: Sequence[Environment], namespaces: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """Return the text of every file by its path; the same input gives the same bytes.

    Raises Mistake when an environment has the name of a project that is not an environment's.
    """
    taken = [environment.name for environment in environments if environment.name in {ROOT_NAME, DEFAULT}]
    if taken:
        raise Mistake(
            [f"gitops/environments/{name}.yaml: name: '{name}' is a project of Argo CD's own" for name in taken]
        )
    files: dict[str, list[Manifest]] = {
        ROOT: [root_project(settings), root_application(settings)],
        f"{PROJECTS}/{DEFAULT}.yaml": [default_project(settings)],
    }
    for environment in environments:
        name = environment.name
        files[f"{PROJECTS}/{name}.yaml"] = [project(settings, name, namespaces[name])]
        files[f"{APPSETS}/{name}.yaml"] = [application_set(settings, name)]
    return {path: _HEADER + "---\n".join(dump(part) for part in parts) for path, parts in sorted(files.items())}


def root_project(settings: Settings) -> Manifest:
    """The project of the root application, which writes projects and application sets beside Argo CD, nothing else."""
    return _project(
        settings,
        ROOT_NAME,
        "Bootstraps the projects and application sets of the environments",
        destinations=[{"server": _IN_CLUSTER, "namespace": settings.namespace}],
        kinds=[("argoproj.io", "AppProject"), ("argoproj.io", "ApplicationSet")],
    )


def root_application(settings: Settings) -> Manifest:
    """The one application that is applied from outside. Deleting it deletes nothing else: it has no finalizer."""
    return {
        "apiVersion": _API,
        "kind": "Application",
        "metadata": {
            "name": ROOT_NAME,
            "namespace": settings.namespace,
            "labels": _LABELS,
            "annotations": {"argocd.argoproj.io/manifest-generate-paths": f"/{PROJECTS};/{APPSETS}"},
        },
        "spec": {
            "project": ROOT_NAME,
            "source": {
                "repoURL": settings.repository,
                "targetRevision": settings.branch,
                "path": "gitops",
                "directory": {"recurse": True, "include": "{projects/*.yaml,appsets/*.yaml}"},
            },
            "destination": {"server": _IN_CLUSTER, "namespace": settings.namespace},
            "syncPolicy": _sync(["ApplyOutOfSyncOnly=true", "PruneLast=true"]),
            "revisionHistoryLimit": 3,
        },
    }


def default_project(settings: Settings) -> Manifest:
    """The project that Argo CD makes with everything allowed, locked: an application without a project gets nowhere."""
    return {
        "apiVersion": _API,
        "kind": "AppProject",
        "metadata": {
            "name": DEFAULT,
            "namespace": settings.namespace,
            "labels": _LABELS,
            # Argo CD expects it to exist: it stays, locked, whatever becomes of the file.
            "annotations": {"argocd.argoproj.io/sync-wave": "-1", "argocd.argoproj.io/sync-options": "Prune=false"},
        },
        "spec": {
            "description": "Locked: every application belongs to the project of an environment",
            "sourceRepos": [],
            "sourceNamespaces": [],
            "destinations": [],
            "clusterResourceWhitelist": [],
            "namespaceResourceBlacklist": [{"group": "*", "kind": "*"}],
            "roles": [],
        },
    }


def project(settings: Settings, environment: str, namespaces: Sequence[str]) -> Manifest:
    """What the applications of one environment may deploy, and where."""
    # The applications name no namespace of their own, because their manifests do; to Argo CD that is the namespace
    # "", which the project must allow. It holds nothing: an object without a namespace is refused.
    allowed = ["", *namespaces]
    return _project(
        settings,
        environment,
        f"The models in {environment}",
        destinations=[{"server": settings.server, "namespace": namespace} for namespace in allowed],
        kinds=KINDS,
        labels={"modelwharf.io/environment": environment},
    )


def _project(
    settings: Settings,
    name: str,
    description: str,
    *,
    destinations: Sequence[Json],
    kinds: Sequence[tuple[str, str]],
    labels: Mapping[str, str] | None = None,
) -> Manifest:
    return {
        "apiVersion": _API,
        "kind": "AppProject",
        "metadata": {
            "name": name,
            "namespace": settings.namespace,
            "labels": {**_LABELS, **(labels or {})},
            "annotations": {"argocd.argoproj.io/sync-wave": "-1"},  # before the applications that need it
            "finalizers": [_FINALIZER],
        },
        "spec": {
            "description": description,
            "sourceRepos": [settings.repository],
            "destinations": list(destinations),
            "namespaceResourceWhitelist": [{"group": group, "kind": kind} for group, kind in kinds],
            # Empty lists are written out: what is left out of a manifest, Argo CD leaves alone when someone adds it.
            "clusterResourceWhitelist": [],
            "sourceNamespaces": [],
            "roles": [],
        },
    }


def application_set(settings: Settings, environment: str) -> Manifest:
    """One application for each folder in the environment's part of `gitops/rendered`."""
    model = "{{ .path.basename }}"
    labels = {**_LABELS, "modelwharf.io/environment": environment}
    return {
        "apiVersion": _API,
        "kind": "ApplicationSet",
        "metadata": {
            "name": environment,
            "namespace": settings.namespace,
            "labels": labels,
            # Deleting an ApplicationSet deletes its applications and all they run. A lost file or a deleted root
            # application must not do that to an environment: a person deletes the (by then empty) set.
            "annotations": {"argocd.argoproj.io/sync-options": "Prune=false,Delete=false"},
        },
        "spec": {
            "goTemplate": True,
            "goTemplateOptions": ["missingkey=error"],
            "generators": [
                {
                    "git": {
                        "repoURL": settings.repository,
                        "revision": settings.branch,
                        "directories": [{"path": f"{RENDERED}/{environment}/*"}],
                        "requeueAfterSeconds": 180,  # when no push was announced
                    }
                }
            ],
            # A release that is removed takes its application, and that its objects, with it.
            "syncPolicy": {"applicationsSync": "sync", "preserveResourcesOnDeletion": False},
            "template": {
                "metadata": {
                    "name": f"{model}-{environment}",
                    "labels": {**labels, "modelwharf.io/model": model},
                    # What changes outside of the application's own folder is no reason to look at it again.
                    "annotations": {"argocd.argoproj.io/manifest-generate-paths": "."},
                    "finalizers": [_FINALIZER],
                },
                "spec": {
                    "project": environment,
                    "source": {
                        "repoURL": settings.repository,
                        "targetRevision": settings.branch,
                        "path": "{{ .path.path }}",
                    },
                    "destination": {"server": settings.server},
                    # Checking each object against the cluster's OpenAPI documents, twice, is most of what a sync costs;
                    # `wharf validate` has done it before the commit. docs/adr/0006-argocd-at-scale.md has figures.
                    "syncPolicy": _sync(
                        ["ApplyOutOfSyncOnly=true", "FailOnSharedResource=true", "PruneLast=true", "Validate=false"]
                    ),
                    "revisionHistoryLimit": 3,
                },
            },
        },
    }


def _sync(options: Sequence[str]) -> Manifest:
    """Automatic, and tried again for about 17 minutes: without a retry Argo CD gives up on a commit at once."""
    return {
        "automated": {"prune": True, "selfHeal": True},
        # `refresh`: each attempt takes the newest commit, so that a fix need not wait for the last attempt.
        "retry": {"limit": 10, "refresh": True, "backoff": {"duration": "5s", "factor": 2, "maxDuration": "3m"}},
        "syncOptions": list(options),
    }
