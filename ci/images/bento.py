"""The image of a bento, in layers that change at different speeds.

base image / Python packages (one layer for all bentos with the same requirements) / the code that serves / the model.
A new version of a model sends its last layer and two small documents.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ci.errors import Mistake
from ci.images import base, builder, dependencies, layers
from ci.images.builder import Config, Image
from ci.images.layers import Entry
from ci.images.registry import Registry
from ci.rendering.manifests import PORT, USER

if TYPE_CHECKING:
    from ci.build import Bento
    from ci.cluster.access import Access
    from ci.workspace import Workspace

HOME = "/home/bentoml/bento"
_RECIPE = 1  # goes up when the way of packing changes
_ENV = {
    "BENTO_PATH": HOME,
    "BENTOML_HOME": "/tmp/bentoml",  # noqa: S108 - in a container; the only place that can be written to
    "BENTOML_DO_NOT_TRACK": "true",
}


@dataclass(frozen=True)
class BentoImage:
    """An image in the registry, and what it took to bring it there."""

    reference: str  # `<registry>/<model>@sha256:<manifest digest>`
    pushed: int  # bytes; 0: it was there
    seconds: float


def ensure(workspace: Workspace, access: Access, bento: Bento, registry: str, commit: str = "") -> str:
    """Return the reference by digest of the bento's image; see `provide`."""
    return provide(workspace, access, bento, registry, commit).reference


def provide(workspace: Workspace, access: Access, bento: Bento, registry: str, commit: str = "") -> BentoImage:
    """Build and push the image of `bento` unless the registry has it; `registry` is its name in the reference.

    `commit`: what the model was trained at, a label. The same bento, commit, base and requirements give the same
    digest. Raises Mistake (a Python that the base does not have, no builder), Unavailable (registry, package index).
    """
    target = Registry(access.push)
    found = base.provide(target, access, "serving", workspace)
    python = _python(bento.path)
    if python != base.PYTHON:
        raise Mistake(
            f"{bento.tag}: wants Python {python}, the base image has {base.PYTHON}",
            tip=f'set docker.python_version: "{base.PYTHON}" in bentos/{bento.tag.partition(":")[0]}/bentofile.yaml',
        )
    requirements = (bento.path / "src" / "requirements.txt").read_text(encoding="utf-8")
    parent = dependencies.provide(target, found, requirements, python)
    name = bento.tag.partition(":")[0]
    inputs = json.dumps([_RECIPE, bento.digest, parent.digest, commit, _ENV])
    tag = f"{bento.digest[:16]}-{hashlib.sha256(inputs.encode()).hexdigest()[:16]}"
    if known := target.digest(name, tag):
        return BentoImage(f"{registry}/{name}@{known}", 0, 0.0)
    own = [layers.pack(_code(bento.path, python)), layers.pack(_model(bento.path))]
    config = Config(
        env=_ENV,
        labels=_labels(bento, commit),
        user=f"{USER}:{USER}",
        workdir=HOME,
        command=["python", f"{HOME}/src/bentos/serve.py", "--host", "0.0.0.0", "--port", str(PORT)],  # noqa: S104
    )
    published = builder.publish(target, Image(name, tag, parent, own, config, found.architecture))
    return BentoImage(f"{registry}/{name}@{published.digest}", published.pushed, published.seconds)


def _python(path: Path) -> str:
    return str(_description(path)["image"]["python_version"])


def _description(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load((path / "bento.yaml").read_text(encoding="utf-8"))
        assert isinstance(raw, dict)
        return raw
    except (OSError, yaml.YAMLError, AssertionError) as error:
        raise Mistake(f"{path}: is no bento: {error}", tip="build it again with `wharf build`") from None


def _labels(bento: Bento, commit: str) -> Mapping[str, str]:
    """Names of https://github.com/opencontainers/image-spec/blob/main/annotations.md, and the bento's own."""
    name = bento.tag.partition(":")[0]
    found = {"org.opencontainers.image.title": name, "modelwharf.io/model": name, "modelwharf.io/bento": bento.tag}
    return found | ({"org.opencontainers.image.revision": commit} if commit else {})


def _is_code(path: Path) -> bool:
    """Tell whether a file of the bento, by its relative path, is the same for many versions of a model."""
    return path.parts[0] == "src" and path.parts[1:2] != ("model",) and "__pycache__" not in path.parts


def _code(path: Path, python: str) -> list[Entry]:
    """Return the code that serves with its byte code, compiled here for a root that cannot be written to."""
    entries = layers.tree(path, HOME, wanted=_is_code)
    with tempfile.TemporaryDirectory(prefix="wharf-code-") as folder:
        copy = Path(folder)
        for entry in entries:
            assert entry.source is not None
            target = copy / Path(entry.path).relative_to(HOME)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.source.read_bytes())
        dependencies.compile_all(copy, HOME, python)
        compiled = [
            Entry(f"{HOME}/{made.relative_to(copy).as_posix()}", content=made.read_bytes(), mode=0o644)
            for made in copy.rglob("*.pyc")
        ]
    return entries + compiled


def _model(path: Path) -> list[Entry]:
    """Return the rest: the model and what describes this bento.

    Of the description is left out when it was built, and the requirements, which the image has installed: they are
    thousands of lines that BentoML would parse at every start.
    """
    description = _description(path)
    image = {**(description.get("image") or {}), "python_requirements": ""}
    text = yaml.safe_dump({**description, "creation_time": builder.CREATED, "image": image}, sort_keys=False)
    rest = layers.tree(path, HOME, wanted=lambda each: each.parts[:2] == ("src", "model") or each.parts[0] == "apis")
    return [*rest, Entry(f"{HOME}/bento.yaml", content=text.encode(), mode=0o644)]
