"""`wharf lineage MODEL --env ENV`: follow a release back to where it comes from, and check every link.

release (git) → version (registry) → run (MLflow) → data digest → training commit → evidence → artifact → bento → image.
A link is checked on the thing itself: evidence and artifact are downloaded and digested, the commit is looked up.
`wharf lineage pod/NAME` begins at a running pod of the cluster (see `ci.cluster.pod_lineage`).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from ci.cluster import access
from ci.console import paint, table
from ci.environments import load_all
from ci.errors import Mistake, Refusal, Unavailable, WharfError, did_you_mean
from ci.files import sha256_bytes, sha256_file
from ci.gating import evidence as record
from ci.gating.champion import Released, released
from ci.mlflow_api.store import Run, Store, connect
from ci.registry import evidence_bytes, facts, finished_run, serving_file
from ci.release import Release, path_of
from ci.shell import CommandFailed, git
from ci.workspace import Workspace, shown_uri


@dataclass(frozen=True)
class Link:
    """One step back; `ok` is False when what is found there is not what the release says.

    `checked` is False when the thing itself is not on this machine: nothing is known against it, nothing proven.
    """

    link: str
    ok: bool
    value: str
    detail: str
    checked: bool = True


class NotHere(Exception):
    """What a link leads to is not on this machine, so it cannot be opened."""


@dataclass(frozen=True)
class Lineage:
    """All links of one release, or of one pod."""

    model: str
    environment: str
    links: tuple[Link, ...]
    pod: str = ""  # `namespace/name` where it begins at a pod

    @property
    def verified(self) -> bool:
        """Whether no link is broken; those of `unchecked` are left out."""
        return all(link.ok for link in self.links)

    @property
    def unchecked(self) -> list[str]:
        """Names of the links that cannot be checked on this machine."""
        return [link.link for link in self.links if not link.checked]

    def as_dict(self) -> dict[str, object]:
        """Return what `--json` prints."""
        head = {"model": self.model, "environment": self.environment, **({"pod": self.pod} if self.pod else {})}
        return {
            **head,
            "verified": self.verified,
            "unchecked": self.unchecked,
            "links": [asdict(link) for link in self.links],
        }


def lineage(workspace: Workspace, name: str, environment: str) -> Lineage:
    """Return every link of the release of `name` in `environment`, checked.

    Raises Mistake when there is no such model, environment or release; Unavailable when MLflow or the git remote does
    not answer. A broken link is no exception: see `Lineage.verified`.
    """
    workspace.model(name)
    known = [one.name for one in load_all(workspace.root)]
    if environment not in known:
        raise Mistake(
            f"no environment '{environment}'{did_you_mean(environment, known)}", tip=f"environments: {', '.join(known)}"
        )
    found = released(workspace, environment, name)
    if found is None:
        raise Mistake(
            f"'{name}' is not released in {environment}",
            tip=f"release it with `wharf promote {name} --to {environment}`",
        )
    return Lineage(name, environment, tuple(links_of(workspace, found)))


def links_of(workspace: Workspace, found: Released) -> list[Link]:
    """Return the links of a release, from the commit that made it on; raises Unavailable."""
    release, store = found.release, connect(workspace)
    on_cluster = access.load(workspace)
    links = [
        _release(workspace, found),
        checked("version", str(release.version), lambda: _version(workspace, release)),
        checked("run", release.run, lambda: _run(store, release)),
        checked("data", release.data, lambda: _data(store, release)),
        checked("commit", release.commit, lambda: _commit(workspace, store, release)),
        checked("evidence", release.evidence, lambda: _evidence(store, release)),
        checked("artifact", release.artifact, lambda: _artifact(store, release)),
        checked("bento", release.bento, lambda: _bento(workspace, release, whole=on_cluster is None)),
    ]
    if on_cluster:
        from ci.cluster import image

        links.append(checked("image", release.image, lambda: image.verify(on_cluster, release)))
    return links


def checked(link: str, value: str, check: Callable[[], str]) -> Link:
    """Return the link with what `check` says; what it refuses breaks the link."""
    try:
        return Link(link, True, value, check())
    except NotHere as error:
        return Link(link, True, value, str(error), checked=False)
    except Unavailable:
        raise
    except WharfError as error:
        return Link(link, False, value, error.lines[0])


def _release(workspace: Workspace, found: Released) -> Link:
    release = found.release
    path = path_of(release.environment, release.model)
    last = git(workspace.root, "log", "-1", "--format=%H%x09%an%x09%aI%x09%s", found.revision or "HEAD", "--", path)
    if not last:
        return Link("release", False, path, f"{found.source}: in no commit")
    commit, who, when, subject = last.split("\t", 3)
    if found.revision is None and git(workspace.root, "status", "--porcelain", "--", path):
        return Link("release", False, path, f"{found.source}: changed by hand since commit {commit[:12]}")
    return Link("release", True, path, f"{found.source}: commit {commit[:12]} by {who}, {when}: {subject}")


def _same(what: str, pairs: dict[str, tuple[str | None, str]]) -> None:
    """Raise Refusal for the first pair whose first part, what is known, is not what the release says."""
    for key, (known, said) in pairs.items():
        if known != said:
            raise Refusal(f"{what}: {key} is {known or 'unknown'}, the release says {said}")


def _version(workspace: Workspace, release: Release) -> str:
    known = facts(workspace, release.model, release.version)
    pairs: dict[str, tuple[str | None, str]] = {
        "run": (known.run, release.run),
        "evidence": (f"sha256:{known.evidence}", release.evidence),
        "artifact": (f"sha256:{known.artifact}", release.artifact),
        "data": (f"sha256:{known.data}", release.data),
        "commit": (known.commit, release.commit),
        "bento": (known.bento, release.bento),
        "image": (known.image, release.image),
    }
    _same(f"version {release.version} in the registry", pairs)
    return "the registry agrees with the release in every fact"


def _of(store: Store, release: Release) -> Run:
    return finished_run(store, release.model, release.run)


def _run(store: Store, release: Release) -> str:
    run = _of(store, release)
    _same(f"run {run.id}", {"artifact": (f"sha256:{run.tags.get('wharf.artifact_sha256')}", release.artifact)})
    return f"complete in MLflow at {shown_uri(store.uri)}"


def _data(store: Store, release: Release) -> str:
    run = _of(store, release)
    _same(f"run {run.id}", {"data": (f"sha256:{run.tags.get('wharf.data_sha256')}", release.data)})
    digest = release.data.removeprefix("sha256:")
    if not any(recorded and digest.startswith(recorded) for recorded in run.datasets):
        raise Refusal(f"run {run.id}: its recorded dataset is {', '.join(run.datasets) or 'none'}")
    source = run.tags.get("wharf.source")
    return f"the run's recorded dataset{f', from {source}' if source else ''}"


def _commit(workspace: Workspace, store: Store, release: Release) -> str:
    run = _of(store, release)
    _same(f"run {run.id}", {"commit": (run.tags.get("wharf.commit"), release.commit)})
    try:
        line = git(workspace.root, "log", "-1", "--format=%an, %aI: %s", f"{release.commit}^{{commit}}", "--")
    except CommandFailed:
        raise Refusal("is not in this repository; `git fetch` may bring it") from None
    if run.tags.get("wharf.dirty") == "true":
        raise Refusal("the run was trained with uncommitted changes, which are in no commit")
    return line


def _evidence(store: Store, release: Release) -> str:
    content = evidence_bytes(store, release.model, release.run, release.evidence.removeprefix("sha256:"))
    proof = record.load(content, "evidence.json")
    _same("evidence.json", {"run": (proof.run, release.run), "verdict": (proof.verdict, "passed")})
    _same("evidence.json", {"artifact": (f"sha256:{proof.artifact_sha256}", release.artifact)})
    return f"passed all {len(proof.checks)} checks on {proof.rows} held-out rows; digest of the download agrees"


def _artifact(store: Store, release: Release) -> str:
    run = _of(store, release)
    _, path = serving_file(store, run)
    content = store.read(run, path)
    _same(path, {"sha256": (f"sha256:{sha256_bytes(content)}", release.artifact)})
    return f"{path}, {len(content):,} bytes; digest of the download agrees"


def _bento(workspace: Workspace, release: Release, whole: bool) -> str:
    from ci.build import REGISTRY, content_hash
    from ci.cluster.access import load as on_cluster

    tag = release.bento.partition(":")[2]
    folder = workspace.bento_store / "bentos" / release.model / tag
    if not folder.is_dir():
        raise NotHere("not checked: it is not in this machine's store")
    files = sorted(folder.glob("src/model/artifact.*"))
    if not files:
        raise Refusal("the bento in the store holds no artifact")
    digest = content_hash(folder / "src")
    pairs: dict[str, tuple[str | None, str]] = {
        "artifact": (f"sha256:{sha256_file(files[0])}", release.artifact),
        "content hash": (digest[:16], tag),
    }
    if release.image.startswith(f"{REGISTRY}/") and not on_cluster(workspace):  # its digest is the content hash
        pairs["image"] = (f"{REGISTRY}/{release.model}@sha256:{digest}", release.image)
    _same("the bento in the store", pairs)
    return "in the store; its content has the hash that the release names, and the same artifact"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of the model, or pod/NAME (pod/NAMESPACE/NAME) of a pod on the cluster")
    parser.add_argument("--env", help="environment whose release to follow")
    parser.add_argument("-n", "--namespace", help="namespace of the pod (default: where there is one of that name)")
    parser.add_argument("--json", action="store_true", help="print the links as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    found = _found(workspace, options)
    if options.json:
        print(json.dumps(found.as_dict(), indent=2))
    else:
        rows = [[_sign(link), link.link, link.value, link.detail] for link in found.links]
        print(table(["", "LINK", "VALUE", "WHAT WAS FOUND"], rows))
    broken = [link for link in found.links if not link.ok]
    if broken:
        subject = f"pod {found.pod}" if found.pod else f"{found.model} in {found.environment}"
        raise Refusal(
            [f"{subject}: {link.link} {link.value}: {link.detail}" for link in broken],
            tip="what runs cannot be proven: promote a version whose links hold",
        )
    if not options.json:
        print(_summary(found))
    return 0


def _found(workspace: Workspace, options: argparse.Namespace) -> Lineage:
    kind, _, name = str(options.model).rpartition("/")
    if kind == "pod" or kind.startswith(("pod/", "pods/")) or kind == "pods":
        from ci.cluster import pod_lineage

        return pod_lineage.lineage(workspace, kind.partition("/")[2] or options.namespace, name)
    if options.env is None:
        raise Mistake(
            "--env: is missing: each environment has its own release",
            tip=f"wharf lineage {options.model} --env ENV, or `wharf lineage pod/NAME` for a pod",
        )
    return lineage(workspace, options.model, options.env)


def _sign(link: Link) -> str:
    return ("✓" if link.checked else "-") if link.ok else "✗"


def _summary(found: Lineage) -> str:
    if found.unchecked:
        return paint(f"every link that was checked holds; not checked here: {', '.join(found.unchecked)}", "yellow")
    return paint("every link holds", "green")
