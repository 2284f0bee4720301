"""Check the image of a release on the thing itself: what the registry has, down to the model's file in a layer."""

from __future__ import annotations

import hashlib
import json
import tarfile
import tempfile
from typing import IO, Any

from ci.cluster.access import Access
from ci.errors import Refusal
from ci.files import sha256_bytes
from ci.images.registry import Found, Registry
from ci.release import Release

_MODEL = "home/bentoml/bento/src/model/"
_DESCRIPTION = f"{_MODEL}serving.json"

Json = dict[str, Any]


def verify(access: Access, release: Release) -> str:
    """Return in words what was checked: digest, labels, and the model's file in the image.

    Raises Refusal (something there is not what the release says), Mistake (no such image), Unavailable (the registry).
    """
    name, _, digest = release.image.partition("@")
    place, repository = _place(access, name)
    registry = Registry(place)
    found = registry.manifest(repository, digest)  # its content is digested there
    config: Json = registry.json_blob(repository, found.content["config"]["digest"])
    labels: Json = (config.get("config") or {}).get("Labels") or {}
    for label, said in (
        ("modelwharf.io/bento", release.bento),
        ("org.opencontainers.image.revision", release.commit),
    ):
        if labels.get(label) not in (None, said):
            raise Refusal(f"its label {label} is {labels[label]}, the release says {said}")
    file, sha256 = _model(registry, repository, found)
    if f"sha256:{sha256}" != release.artifact:
        raise Refusal(f"{file} in it has sha256 {sha256[:16]}…, the release says {release.artifact[7:23]}…")
    return f"in the registry {access.push}; its digest and labels agree, and {file} in it is the artifact"


def _place(access: Access, name: str) -> tuple[str, str]:
    """Return where this machine reaches the registry that images call `access.registry`, and the repository there."""
    if name.startswith(f"{access.registry}/"):
        return access.push, name.removeprefix(f"{access.registry}/")
    place, _, repository = name.rpartition("/")
    return place, repository


def _model(registry: Registry, repository: str, found: Found) -> tuple[str, str]:
    """Return name and sha256 of the model's file; it is in the last layer that has the model's folder."""
    for layer in reversed(found.content["layers"]):
        with tempfile.TemporaryFile() as file:
            digest = hashlib.sha256()
            for piece in registry.blob(repository, layer["digest"]):
                digest.update(piece)
                file.write(piece)
            if f"sha256:{digest.hexdigest()}" != layer["digest"]:
                raise Refusal(f"the registry sent other content for layer {layer['digest'][:19]}…")
            file.seek(0)
            if model := _in_archive(file):
                return model
    raise Refusal(f"no layer of it has {_DESCRIPTION}")


def _in_archive(file: IO[bytes]) -> tuple[str, str] | None:
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        names = {member.name.removeprefix("./").lstrip("/"): member for member in archive if member.isfile()}
        if _DESCRIPTION not in names:
            return None
        with _opened(archive, names[_DESCRIPTION]) as stream:
            path = f"{_MODEL}{json.load(stream)['file']}"
        if path not in names:
            raise Refusal(f"{path} is missing in it")
        with _opened(archive, names[path]) as stream:
            return path.removeprefix("home/bentoml/bento/"), sha256_bytes(stream.read())


def _opened(archive: tarfile.TarFile, member: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(member)
    assert stream is not None  # a file, not a folder
    return stream
