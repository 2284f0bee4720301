"""One way to make an image of a parent, layers and settings, and to push it: `publish`.

By default nothing is needed for it: an image is a list of archives and two JSON documents, which are written here and
sent to the registry (docs/adr/0004-images.md says why). WHARF_BUILDER=docker, podman or buildah lets that program do
it instead; all of them build without the network and run nothing inside the image.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ci.console import step
from ci.errors import Mistake, did_you_mean
from ci.files import sha256_bytes
from ci.images.layers import Layer
from ci.images.registry import CONFIG, LAYER, MANIFEST, Registry

VARIABLE = "WHARF_BUILDER"
NAMES = ("direct", "docker", "podman", "buildah")
CREATED = "1970-01-01T00:00:00Z"  # a time of day would make another digest of the same content
_ARCHITECTURES = {"x86_64": "amd64", "amd64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
# What a layer of an older kind is called in an OCI manifest; the bytes are the same.
_LAYER_TYPES = {"application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER}


@dataclass(frozen=True)
class Parent:
    """The image that another one is built on, in the same registry."""

    repository: str
    digest: str


@dataclass(frozen=True)
class Config:
    """What a container of the image starts with; what is left empty is the parent's."""

    env: Mapping[str, str] = field(default_factory=dict[str, str])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str = ""
    workdir: str = ""
    entrypoint: Sequence[str] = ()
    command: Sequence[str] = ()


@dataclass(frozen=True)
class Image:
    """What is to be pushed to `repository` under `tag`."""

    repository: str
    tag: str
    parent: Parent | None
    layers: Sequence[Layer]
    config: Config
    architecture: str = ""  # "amd64"; empty: this machine's


@dataclass(frozen=True)
class Published:
    """An image in the registry."""

    digest: str  # of the manifest, "sha256:…"
    pushed: int  # bytes sent
    seconds: float


class Builder(Protocol):
    """Makes images and pushes them."""

    name: str

    def publish(self, registry: Registry, image: Image) -> Published:
        """Build and push; raises Mistake or Unavailable."""
        ...


def choose() -> Builder:
    """Return the builder that WHARF_BUILDER names, the direct one by default; raises Mistake for one not there."""
    name = os.environ.get(VARIABLE, "direct")
    if name not in NAMES:
        raise Mistake(
            f"{VARIABLE}: unknown builder '{name}'{did_you_mean(name, NAMES)}", tip=f"one of {', '.join(NAMES)}"
        )
    if name == "direct":
        return Direct()
    from ci.images.engines import engine

    return engine(name)


def publish(registry: Registry, image: Image) -> Published:
    """Push `image`, unless the registry has its tag: tags name all that goes in, so the same tag is the same image."""
    begun = time.monotonic()
    if known := registry.digest(image.repository, image.tag):
        return Published(known, 0, time.monotonic() - begun)
    with step(f"push {registry.name(image.repository)}") as shown:
        published = choose().publish(registry, image)
        shown.note = size(published.pushed)
    return published


def size(count: int) -> str:
    """Return a number of bytes as people read it."""
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def architecture(machine: str = "") -> str:
    """Return the name that images use for a kind of processor (default: this machine's); raises Mistake for others."""
    name = (machine or platform.machine()).lower()
    if name not in _ARCHITECTURES:
        raise Mistake(f"no images are made for processors of the kind '{name}'", tip="known: x86_64 and aarch64")
    return _ARCHITECTURES[name]


class Direct:
    """Writes the two documents and sends what the registry lacks."""

    name = "direct"

    def publish(self, registry: Registry, image: Image) -> Published:
        begun, sent = time.monotonic(), registry.pushed
        settings, inherited = _parent(registry, image)
        if image.parent:
            for layer in inherited:
                _inherit(registry, image, layer)
        for layer in image.layers:
            with layer.path.open("rb") as stream:
                registry.put_blob(image.repository, layer.digest, stream, layer.size)
        config = json.dumps(_config(settings, image), sort_keys=True, separators=(",", ":")).encode()
        digest = f"sha256:{sha256_bytes(config)}"
        registry.put_blob(image.repository, digest, config, len(config))
        own = [{"mediaType": LAYER, "digest": layer.digest, "size": layer.size} for layer in image.layers]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": digest, "size": len(config)},
            "layers": [*inherited, *own],
        }
        content = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
        pushed = registry.put_manifest(image.repository, image.tag, content)
        return Published(pushed, registry.pushed - sent, time.monotonic() - begun)


def _parent(registry: Registry, image: Image) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the settings and the layers of the parent."""
    if image.parent is None:
        return {"os": "linux", "architecture": image.architecture or architecture()}, []
    found = registry.manifest(image.parent.repository, image.parent.digest).content
    settings = registry.json_blob(image.parent.repository, found["config"]["digest"])
    layers = [
        {"mediaType": _LAYER_TYPES.get(layer["mediaType"], layer["mediaType"])}
        | {key: layer[key] for key in ("digest", "size")}
        for layer in found["layers"]
    ]
    return settings, layers


def _inherit(registry: Registry, image: Image, layer: Mapping[str, Any]) -> None:
    """Bring a parent's layer into the image's repository: registries share blobs on request, without any bytes."""
    assert image.parent is not None
    source, digest = image.parent.repository, str(layer["digest"])
    if source != image.repository:
        content = registry.blob(source, digest)  # read only when the registry does not share
        registry.put_blob(image.repository, digest, content, int(layer["size"]), mount=source)


def _config(parent: Mapping[str, Any], image: Image) -> dict[str, Any]:
    """Return the image's configuration (https://github.com/opencontainers/image-spec/blob/main/config.md)."""
    given, before = image.config, dict(parent.get("config") or {})
    variables = dict(line.split("=", 1) for line in before.get("Env") or []) | dict(given.env)
    settings: dict[str, Any] = {
        **before,
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "Labels": {**(before.get("Labels") or {}), **given.labels},
    }
    for key, value in {"User": given.user, "WorkingDir": given.workdir}.items():
        if value:
            settings[key] = value
    for key, words in {"Entrypoint": given.entrypoint, "Cmd": given.command}.items():
        if words:
            settings[key] = list(words)
    rootfs = parent.get("rootfs") or {"type": "layers", "diff_ids": []}
    history = [*(parent.get("history") or []), *({"created": CREATED, "created_by": "wharf"} for _ in image.layers)]
    return {
        "os": parent["os"],
        "architecture": parent["architecture"],
        **({"variant": parent["variant"]} if "variant" in parent else {}),
        "created": CREATED,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [*rootfs["diff_ids"], *(layer.diff_id for layer in image.layers)]},
        "history": history,
    }
