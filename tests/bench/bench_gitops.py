"""`render` and `validate` for 1,000 and 5,000 releases, against kustomize build + kubeconform.

Run with `python -m tests.bench.bench_gitops [--all-peers] [RELEASES …]`. Every figure is the time of whole processes,
Python's start included; three rounds, ours and theirs in turn, the median is shown. Two things run in the first round
only, for they take minutes: the peers on everything, and at the largest size everything but the single changes.

- The repository is generated: models with the contract of `tumor`, in three environments, with a git history in which
  staging moved on after prod was promoted, so that the order check has to read it.
- The registry is a stub that answers MLflow's point read of a version (tests/registry_double.py) in a process of its
  own: 5,000 real registrations would take longer than everything else here.
- The peers run up to 1,000 releases, with --all-peers at every size (kustomize is one process an overlay).
- The peers get one overlay a release over a shared base, with what differs between our releases (namespace, image,
  annotations, variables, autoscaling). They neither ask a registry nor look for secrets nor at the order. kubeconform
  reads the same schemas, from a folder. Where kustomize or kubeconform is not on the PATH, their rows are left out:
      go install sigs.k8s.io/kustomize/kustomize/v5@v5.7.1 github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ci.console import say, table
from ci.environments import load_all
from ci.registry import VersionFacts
from ci.release import Release, dump, path_of
from ci.rendering import manifests
from ci.schemas import _folder as schema_folder  # pyright: ignore[reportPrivateUsage]
from ci.shell import git, run
from ci.workspace import Workspace, load_spec
from tests.ci.gitops_tree import ROOT, pin
from tests.registry_double import RegistryDouble

ROUNDS = 3
SIZES = (1000, 5000)
PEERS_UP_TO = 1000
ENVIRONMENTS = ("dev", "staging", "prod")
WHARF = str(Path(sys.executable).parent / "wharf")


def main(words: list[str]) -> None:
    sizes = [int(word) for word in words if word != "--all-peers"] or SIZES
    peers = all(shutil.which(name) for name in ("kustomize", "kubeconform"))
    if not peers:
        say("kustomize or kubeconform is not on the PATH: their rows are left out (see the top of this file)")
    rows: list[list[object]] = []
    for size in sizes:
        wanted = peers and (size <= PEERS_UP_TO or "--all-peers" in words)
        with tempfile.TemporaryDirectory(prefix="wharf-bench-") as folder:
            rows += measure(Path(folder), size, wanted)
    print(table(["RELEASES", "WHAT", "SECONDS"], rows))


def measure(folder: Path, size: int, peers: bool) -> list[list[object]]:
    """Generate `size` releases under `folder` and return the rows of the table."""
    root, pins, server, url = generate(folder, size)
    env = {**os.environ, "MLFLOW_TRACKING_URI": url}
    wharf: Callable[..., None] = lambda *words: call([WHARF, *words], root, env)  # noqa: E731
    try:
        say(f"{size} releases: first render")
        wharf("render")
        commit(root, "Render")
        actions: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "render, all written": (lambda: shutil.rmtree(root / "gitops/rendered"), lambda: wharf("render")),
            "render, nothing changed": (_nothing, lambda: wharf("render")),
            "validate, everything": (_nothing, lambda: wharf("validate")),
            "render --changed, one release changed": (
                lambda: bump(root, pins),
                lambda: wharf("render", "--changed", "HEAD"),
            ),
            "validate --changed, one release changed": (
                lambda: bump_commit(root, pins, env),
                lambda: wharf("validate", "--changed", "HEAD~1"),
            ),
        }
        if peers:
            overlays = folder / "overlays"
            say(f"{size} releases: overlays of the peers")
            make_overlays(overlays, pins)
            out, schemas = folder / "built", make_schemas(folder / "schemas")
            one = next(path for path in sorted(overlays.iterdir()) if path.name.startswith("dev-"))
            actions |= {
                "kustomize build, all": (_nothing, lambda: build(overlays, out)),
                "kubeconform, all": (_nothing, lambda: conform(out, schemas)),
                "kustomize build + kubeconform, one": (_nothing, lambda: build_one(one, folder / "one", schemas)),
            }
        taken: dict[str, list[float]] = {name: [] for name in actions}
        for number in range(ROUNDS):
            for name, (prepare, action) in actions.items():
                slow = name.startswith("k") or size >= max(SIZES)
                if number and slow and ", one" not in name:
                    continue
                prepare()
                taken[name].append(seconds(action))
                say(f"{size} releases, round {number + 1}: {name}: {taken[name][-1]:.2f}s")
        return [[size, name, f"{statistics.median(times):.2f}"] for name, times in taken.items()]
    finally:
        server.terminate()
        server.join()


def _nothing() -> None:
    """Prepare nothing."""


def seconds(action: Callable[[], None]) -> float:
    begun = time.monotonic()
    action()
    return time.monotonic() - begun


def call(command: list[str], cwd: Path, env: dict[str, str]) -> None:
    """Run a command that must succeed; its output is shown when it does not."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stderr[-2000:]}")


def generate(folder: Path, size: int) -> tuple[Path, list[Release], multiprocessing.Process, str]:
    """Make the repository and start the registry; return both with the releases that are in the tree."""
    say(f"{size} releases: generating")
    root, names = folder / "repository", [f"m{number:05d}" for number in range(-(-size // len(ENVIRONMENTS)))]
    shutil.copytree(ROOT / "gitops/environments", root / "gitops/environments")
    spec = (ROOT / "models/tumor/model.yaml").read_text()
    for name in names:
        files = {
            f"models/{name}/model.yaml": spec.replace("name: tumor", f"name: {name}", 1),
            f"models/{name}/data.py": (ROOT / "models/tumor/data.py").read_text(),
            f"models/{name}/train.py": (ROOT / "models/tumor/train.py").read_text(),
            f"bentos/{name}/service.py": (ROOT / "bentos/tumor/service.py").read_text(),
        }
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)
    (root / ".gitignore").write_text(".wharf/\n")
    git(root, "init", "--quiet", "--initial-branch=main")
    for key, value in {"user.name": "Bench", "user.email": "bench@localhost", "gc.auto": "0"}.items():
        git(root, "config", key, value)
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.Process(target=serve, args=(names, theirs), daemon=True)
    server.start()
    url, facts = ours.recv()
    old = [pin(facts[name, 1], environment) for name in names for environment in ENVIRONMENTS][:size]
    put(root, old)
    commit(root, "Release version 1 everywhere")
    # Two thirds of the models moved on in dev, one third also in staging: prod is behind and proven by history.
    new: list[Release] = []
    for number, release in enumerate(old):
        third = (number // len(ENVIRONMENTS)) % 3
        moved = (release.environment == "dev" and third > 0) or (release.environment == "staging" and third == 2)
        new.append(pin(facts[release.model, 2], release.environment) if moved else release)
    put(root, new)
    commit(root, "Release version 2")
    return root, new, server, url


def serve(names: list[str], answer: Any) -> None:
    """Run the registry in this process, with two versions of every model."""
    double = RegistryDouble()
    facts: dict[tuple[str, int], VersionFacts] = {}
    for name in names:
        for number in (1, 2, 3):
            facts[name, number] = double.add(name, number)
    answer.send((double.url, facts))
    while True:
        time.sleep(60)


def put(root: Path, pins: Iterable[Release]) -> None:
    for release in pins:
        path = root / path_of(release.environment, release.model)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(dump(release))


def commit(root: Path, message: str) -> None:
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", message)


def bump(root: Path, pins: list[Release]) -> None:
    """Change one release in the working tree to a version of which nobody knows."""
    first = next(release for release in pins if release.environment == "dev")
    text = (root / path_of(first.environment, first.model)).read_text()
    unknown = replace(first, version=8)
    put(root, [unknown if text != dump(unknown) else replace(unknown, version=9)])


def bump_commit(root: Path, pins: list[Release], env: dict[str, str]) -> None:
    """Commit a promotion of one release, as `promote` does: to version 3, and the next time back."""
    first = next(release for release in pins if release.environment == "dev")
    path = path_of(first.environment, first.model)
    third = _next(first)
    release = third if git(root, "show", f"HEAD:{path}") + "\n" != dump(third) else first
    put(root, [release])
    call([WHARF, "render"], root, env)
    commit(root, f"Release\n\nWharf-Release: {release.environment}/{release.model}@{release.version}")


def _next(release: Release) -> Release:
    """Return the release of version 3, whose facts the registry's double makes from the name alone."""
    double = RegistryDouble()
    try:
        return pin(double.add(release.model, 3), release.environment)
    finally:
        double.close()


def make_overlays(folder: Path, pins: list[Release]) -> None:
    """Write a shared base and one overlay a release, whose build has the objects that we render."""
    environments = {environment.name: environment for environment in load_all(ROOT)}
    spec = load_spec(Workspace(ROOT), "tumor")
    base = folder.parent / "base"
    base.mkdir()
    plain = replace(pins[0], model="tumor", environment="dev")
    objects = manifests.all_of(plain, spec, environments["dev"])
    for name, manifest in objects.items():
        shared = json.loads(json.dumps(manifest))
        del shared["metadata"]["namespace"]
        (base / name).write_text(yaml.safe_dump(shared, sort_keys=False))
    (base / "kustomization.yaml").write_text(yaml.safe_dump({"resources": sorted(objects)}))
    for release in pins:
        environment = environments[release.environment]
        facts = {"version": str(release.version), "run": release.run, "commit": release.commit, "data": release.data}
        values = {"WHARF_MODEL": release.model, "WHARF_VERSION": str(release.version), "WHARF_BENTO": release.bento}
        container = {"name": "model", "env": [{"name": name, "value": value} for name, value in values.items()]}
        deployment: dict[str, Any] = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "tumor"},
            "spec": {"template": {"spec": {"containers": [container]}}},
        }
        scaling = {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "tumor"},
            "spec": {"minReplicas": environment.replicas.min, "maxReplicas": environment.replicas.max},
        }
        image, _, digest = release.image.partition("@")
        overlay = folder / f"{release.environment}-{release.model}"
        overlay.mkdir(parents=True)
        document: dict[str, Any] = {
            "resources": ["../../base"],
            "namespace": environment.namespace_of(spec.team, release.model),
            "namePrefix": f"{release.model}-",
            "commonAnnotations": {f"modelwharf.io/{key}": value for key, value in facts.items()},
            "images": [{"name": plain.image.partition("@")[0], "newName": image, "digest": digest}],
            "patches": [{"patch": yaml.safe_dump(deployment)}, {"patch": yaml.safe_dump(scaling)}],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(document))


def make_schemas(folder: Path) -> Path:
    """Write the schemas that we use in a form that kubeconform reads without a network."""
    folder.mkdir()
    names = ["deployment-apps-v1", "service-v1", "serviceaccount-v1", "networkpolicy-networking-v1"]
    names += ["poddisruptionbudget-policy-v1", "horizontalpodautoscaler-autoscaling-v2", "_definitions"]
    for name in names:
        text = (schema_folder() / f"{name}.json").read_text().replace("/api/_definitions.json", "_definitions.json")
        document = json.loads(text)
        document.pop("$id")
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def build(overlays: Path, out: Path) -> None:
    """Build every overlay with a process of its own, two at a time: kustomize builds one target a call."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    names = "\n".join(path.name for path in sorted(overlays.iterdir()))
    run(["xargs", "-P2", "-I{}", "kustomize", "build", "{}", "-o", f"{out}/{{}}.yaml"], cwd=overlays, stdin=names)


def conform(out: Path, schemas: Path) -> None:
    where = f"{schemas}/{{{{ .ResourceKind }}}}{{{{ .KindSuffix }}}}.json"
    said = run(["kubeconform", "-strict", "-n", "2", "-summary", "-schema-location", where, str(out)])
    if "Invalid: 0, Errors: 0, Skipped: 0" not in said:
        raise SystemExit(f"kubeconform did not check everything: {said}")


def build_one(overlay: Path, out: Path, schemas: Path) -> None:
    out.mkdir(exist_ok=True)
    run(["kustomize", "build", str(overlay), "-o", f"{out}/one.yaml"])
    conform(out, schemas)


if __name__ == "__main__":
    main(sys.argv[1:])
