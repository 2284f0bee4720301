"""`wharf build MODEL`: the bento of a registered version.

The tag is the content: the same artifact, code and requirements give the same bento, built once. What goes in is
assembled in a folder of its own, so that nothing of the checkout can slip in, and the finished bento is moved into
the store by one rename, so that a build that was killed leaves nothing that could be taken for a bento.

On the cluster target the bento also becomes an OCI image in the cluster's registry (`ci.images.bento`), whose digest
the version then names; on the local target the store takes the place of a registry.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ci import registry, requirements
from ci.cluster import access
from ci.console import step
from ci.errors import Mistake, Refusal, Unavailable
from ci.files import sha256_file
from ci.shell import CommandFailed, git, run
from ci.workspace import Workspace

REGISTRY = "wharf.local"  # of image names on the local target
_BUILD_S = 300
_IMAGE = re.compile(r"[^@]*?([a-z][a-z0-9]{0,39})@sha256:([0-9a-f]{64})")


@dataclass(frozen=True)
class Bento:
    """A bento in the store."""

    tag: str  # `<model>:<first 16 hex of digest>`
    digest: str  # 64 hex: the content hash
    image: str  # `<registry>/<model>@sha256:<…>`: the digest on the local target, the image manifest's on a cluster
    path: Path
    built: bool  # False: it was there already
    pushed: int = 0  # bytes that were sent to the cluster's registry
    push_s: float = 0.0  # seconds that this took


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name of a directory under models/")
    parser.add_argument("--version", type=int, help="version number in the registry (default: the newest)")
    parser.add_argument("--json", action="store_true", help="print the bento as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    with step(f"build {options.model}") as shown:
        bento = build(workspace, options.model, options.version)
        shown.note = f"{bento.tag}{'' if bento.built or bento.pushed else ' (already there)'}"
    if options.json:
        print(json.dumps(asdict(bento), default=str))
    else:
        where = bento.path if bento.image.endswith(bento.digest) else bento.image
        print(f"{bento.tag}  {where}")
    return 0


def build(workspace: Workspace, name: str, version: int | None = None) -> Bento:
    """Build the bento of `version` (default: the newest) and note it in the registry, unless it is there already.

    On the cluster target its image is pushed, unless the cluster's registry has it.

    Raises Mistake (no such version, no service, code that is not committed), Refusal (the artifact is not the
    registered one), Unavailable.
    """
    workspace.model(name)
    number = version or registry.latest(workspace, name)
    if number is None:
        raise Mistake(
            f"model '{name}' has no version to build", tip=f"make one with `wharf register {name}` or `wharf ship`"
        )
    _require_committed(workspace, name)
    facts = registry.facts(workspace, name, number)
    with store_lock(workspace) as scratch:
        model = _download(workspace, name, facts.run, facts.artifact, scratch / "download")
        bento = package(workspace, name, model, scratch)
    if cluster := access.load(workspace):
        bento = _push(workspace, cluster, bento, facts.commit)
    if (facts.bento, facts.image) != (bento.tag, bento.image):
        registry.set_facts(workspace, name, number, bento=bento.tag, image=bento.image)
    return bento


def _require_committed(workspace: Workspace, name: str) -> None:
    """Raise Mistake when a file that goes into the bento is in no commit: nobody could say later what serves."""
    own = [f"bentos/{name}/{file}" for file in ("service.py", "bentofile.yaml")]
    listed = git(
        workspace.root,
        *("status", "--porcelain", "-z", "--untracked-files=all", "--ignored=matching", "--no-renames"),
        *("--", ":(glob)bentos/*.py", *own, "uv.lock"),
    )
    # git names ignored folders beside them, such as __pycache__, whatever the pattern.
    paths = [entry[3:] for entry in listed.split("\0") if entry and not entry.endswith("/")]
    if paths:
        raise Mistake(
            [f"{path}: is not committed, and a bento is made of committed code only" for path in paths],
            tip="commit first (`git add` and `git commit`), then build again",
        )


def _push(workspace: Workspace, cluster: access.Access, bento: Bento, commit: str) -> Bento:
    from ci.environments import load_all
    from ci.images.bento import provide

    made = provide(workspace, cluster, bento, load_all(workspace.root)[0].registry, commit)
    return replace(bento, image=made.reference, pushed=made.pushed, push_s=round(made.seconds, 3))


def exists(workspace: Workspace, image: str) -> bool:
    """Tell whether the target can serve `image`: the cluster's registry has it, or the store on the local target.

    Raises Unavailable when the registry does not answer.
    """
    cluster = access.load(workspace)
    if cluster is None:
        return find(workspace, image) is not None
    from ci.images.registry import Registry

    match = _IMAGE.fullmatch(image)
    return match is not None and Registry(cluster.push).digest(match[1], f"sha256:{match[2]}") is not None


def find(workspace: Workspace, image: str) -> Path | None:
    """Return the folder of the bento that `image` names, None when the store has none with exactly this content."""
    match = _IMAGE.fullmatch(image)
    if match is None:
        return None
    name, digest = match.groups()
    path = _path(workspace, name, digest)
    return path if _content(path, name) == digest else None


def serve_command(bento_path: Path, port: int) -> list[str]:
    """Return the command that serves the bento as one process on 127.0.0.1; the caller sets the environment."""
    return [sys.executable, str(bento_path / "src" / "bentos" / "serve.py"), "--port", str(port)]


def package(workspace: Workspace, name: str, model: Path, scratch: Path) -> Bento:
    """Build the bento of the model folder `model` (artifact and serving.json), working in the folder `scratch`."""
    # In the system's temporary folder: BentoML refuses to read below a folder whose name begins with a dot.
    with tempfile.TemporaryDirectory(prefix="wharf-build-") as folder:
        return _package(workspace, name, model, Path(folder), scratch)


def _package(workspace: Workspace, name: str, model: Path, context: Path, scratch: Path) -> Bento:
    _assemble(workspace, name, model, context)
    digest = content_hash(context)
    bento = Bento(
        f"{name}:{digest[:16]}", digest, f"{REGISTRY}/{name}@sha256:{digest}", _path(workspace, name, digest), True
    )
    if _content(bento.path, name) == digest:
        return Bento(bento.tag, bento.digest, bento.image, bento.path, built=False)
    home = scratch / "home"
    bentofile = context / "bentos" / name / "bentofile.yaml"
    command = [
        sys.executable,
        "-m",
        "bentoml",
        "build",
        "--bentofile",
        str(bentofile),
        "--version",
        digest[:16],
        "--output",
        "tag",
    ]
    _bentoml([*command, str(context)], context, home, name)
    made = home / "bentos" / name / digest[:16]
    found = _content(made, name)
    if found != digest:
        raise Mistake(
            f"bentos/{name}/bentofile.yaml: the bento does not hold what was put together for it",
            tip="compare its `include` and `service` with those of another model",
        )
    # BentoML adds itself once more and without a hash; the image installs exactly what was locked.
    shutil.copyfile(context / "requirements.txt", made / "env" / "python" / "requirements.txt")
    bento.path.parent.mkdir(parents=True, exist_ok=True)
    if bento.path.exists():  # it was damaged
        bento.path.rename(scratch / "damaged")
    made.rename(bento.path)
    return bento


def _bentoml(command: list[str], context: Path, home: Path, name: str) -> None:
    """Run `bentoml build`; raises Mistake with the last line of what it says, Unavailable when it takes too long."""
    env = {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "true"}
    try:
        run(command, cwd=context, env=env, timeout=_BUILD_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(
            f"bentoml did not build the bento of '{name}' within {_BUILD_S} seconds",
            tip="run the command again when the machine has less to do",
        ) from None
    except CommandFailed as error:
        said = [line.strip() for line in error.stderr.splitlines() if line.strip()] or [f"code {error.code}"]
        raise Mistake(
            f"bentos/{name}/: bentoml cannot build it: {said[-1]}",
            tip=f"look at bentos/{name}/service.py and bentos/{name}/bentofile.yaml",
        ) from None


def content_hash(root: Path) -> str:
    """Return the sha256 over names and digests of the files under `root`: of a build folder, or of a bento's src/.

    Left out are compiled Python and the bentofile.yaml that BentoML writes at the top.
    """
    lines = [
        f"{sha256_file(path)}  {path.relative_to(root).as_posix()}\n"
        for path in sorted(root.rglob("*"), key=lambda path: path.relative_to(root).as_posix())
        if path.is_file() and "__pycache__" not in path.parts and path != root / "bentofile.yaml"
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _path(workspace: Workspace, name: str, digest: str) -> Path:
    return workspace.bento_store / "bentos" / name / digest[:16]


def _content(path: Path, name: str) -> str:
    """Return the content hash of the bento at `path`, an empty string when there is no whole bento of `name`."""
    try:
        description = yaml.safe_load((path / "bento.yaml").read_text(encoding="utf-8"))
        whole = (description["name"], description["version"]) == (name, path.name)
        return content_hash(path / "src") if whole and str(description["service"]).startswith(f"bentos.{name}.") else ""
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return ""


@contextmanager
def store_lock(workspace: Workspace) -> Generator[Path]:
    """Lock the store, remove what killed builds left, and give a scratch folder on the same file system."""
    workspace.bento_store.mkdir(parents=True, exist_ok=True)
    with (workspace.bento_store / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in workspace.bento_store.glob("building-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=workspace.bento_store, prefix="building-") as scratch:
            yield Path(scratch)


def _download(workspace: Workspace, name: str, run_id: str, sha256: str, target: Path) -> Path:
    """Fetch serving.json and the artifact of a run; raises Refusal when it is not the registered one."""
    from ci.mlflow_api.store import connect

    store = connect(workspace)
    source = registry.finished_run(store, name, run_id)
    description = store.download(source, "model/serving.json", target / "serving.json")
    file = _description(description, f"model/serving.json of run {run_id}")["file"]
    artifact = store.download(source, f"model/{file}", target / file)
    found = sha256_file(artifact)
    if found != sha256:
        raise Refusal(
            f"model/{file} of run {run_id}: sha256 is {found[:16]}…, the registry says {sha256[:16]}…",
            tip=f"the run's files were changed after the gate; train again with `wharf train {name} --force`",
        )
    return target


def _description(path: Path, where: str) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_bytes())
        if Path(raw["file"]).name != raw["file"] or raw["format"] not in requirements.BY_FORMAT:
            raise ValueError("'file' or 'format' is not one that can be served")
        return raw
    except (ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{where}: cannot be used: {error}") from None


def _assemble(workspace: Workspace, name: str, model: Path, context: Path) -> None:
    """Put into `context` all that the bento may hold."""
    own = workspace.bentos / name
    for needed in ("service.py", "bentofile.yaml"):
        if not (own / needed).is_file():
            raise Mistake(
                f"bentos/{name}/{needed}: is missing", tip="copy it from another model and change the name in it"
            )
    (context / "bentos" / name).mkdir(parents=True)
    for file in [*workspace.bentos.glob("*.py"), own / "service.py", own / "bentofile.yaml"]:
        shutil.copyfile(file, context / "bentos" / file.relative_to(workspace.bentos))
    description = _description(model / "serving.json", "serving.json")
    (context / "model").mkdir()
    for file in ("serving.json", description["file"]):
        shutil.copyfile(model / file, context / "model" / file)
    wanted = [*requirements.SERVING, *requirements.BY_FORMAT[description["format"]]]
    python = _python(own / "bentofile.yaml", f"bentos/{name}/bentofile.yaml")
    (context / "requirements.txt").write_text(requirements.export(workspace.root / "uv.lock", wanted, python))


def _python(bentofile: Path, where: str) -> str:
    """Return the Python version that the bentofile pins."""
    try:
        python = yaml.safe_load(bentofile.read_text(encoding="utf-8"))["docker"]["python_version"]
    except (yaml.YAMLError, ValueError) as error:
        raise Mistake(f"{where}: not valid YAML: {str(error).splitlines()[0]}") from None
    except (KeyError, TypeError):
        raise Mistake(
            f"{where}: docker.python_version: is missing", tip='for instance python_version: "3.11"'
        ) from None
    if not isinstance(python, str) or not re.fullmatch(r"3\.\d+", python):
        raise Mistake(f'{where}: docker.python_version: must be text such as "3.11", not {python!r}')
    return python
