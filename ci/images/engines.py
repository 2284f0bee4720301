"""docker, podman and buildah as builders: a Containerfile of FROM, ADD, ENV, LABEL and USER, then a push.

Nothing runs inside the image and nothing is fetched, so no isolation and no network of a container is needed.
"""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from ci.errors import Mistake, Unavailable
from ci.images.builder import VARIABLE, Image, Published
from ci.images.layers import cache
from ci.images.registry import Registry
from ci.shell import CommandFailed, run

_LIMIT_S = 1800
_INSTALL = {
    "docker": "install Docker and start its engine",
    "podman": "`apt-get install podman`, or https://podman.io",
    "buildah": "`apt-get install buildah`",
}


class Engine:
    """A builder that is a program of the machine."""

    def __init__(self, name: str) -> None:
        self.name = name

    def publish(self, registry: Registry, image: Image) -> Published:
        begun = time.monotonic()
        target = f"{registry.name(image.repository)}:{image.tag}"
        with tempfile.TemporaryDirectory(prefix="wharf-image-") as folder:
            context = Path(folder)
            for number, layer in enumerate(image.layers):
                shutil.copyfile(layer.path, context / f"{number}.tar.gz")
            (context / "Containerfile").write_text(containerfile(registry, image), encoding="utf-8")
            self._run([*self._build(registry), "--tag", target, "--file", str(context / "Containerfile"), str(context)])
            digest = self._push(registry, target, context)
        return Published(digest, _new_bytes(registry, image, digest), time.monotonic() - begun)

    def _build(self, registry: Registry) -> list[str]:
        if self.name == "docker":
            # Layers are unpacked from archives with times of their own; this sets those of the image itself.
            return ["docker", "build", "--build-arg", "SOURCE_DATE_EPOCH=0", "--network=none"]
        tls = ["--tls-verify=false"] if registry.insecure else []
        if self.name == "podman":
            return ["podman", "build", "--layers", "--timestamp", "0", "--network=none", *tls]
        return [*_buildah(), "bud", "--isolation", "chroot", "--layers", "--timestamp", "0", *tls]

    def _push(self, registry: Registry, target: str, scratch: Path) -> str:
        if self.name == "docker":
            said = self._run(["docker", "push", target])
            found = re.findall(r"digest: (sha256:[0-9a-f]{64})", said)
            if not found:
                raise Unavailable(f"docker did not say the digest of {target}", tip="try another WHARF_BUILDER")
            return found[-1]
        note = scratch / "digest"
        tls = ["--tls-verify=false"] if registry.insecure else []
        program = _buildah() if self.name == "buildah" else ["podman"]
        self._run([*program, "push", *tls, "--digestfile", str(note), target, f"docker://{target}"])
        return note.read_text().strip()

    def _run(self, command: list[str]) -> str:
        try:
            # An attestation would make a list of the image, and a date in it another digest each time.
            return run(command, env={"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}, timeout=_LIMIT_S)
        except FileNotFoundError:
            raise _missing(self.name) from None
        except subprocess.TimeoutExpired:
            raise Unavailable(f"{self.name} did not finish within {_LIMIT_S // 60} minutes") from None
        except CommandFailed as error:
            said = [line.strip() for line in error.stderr.splitlines() if line.strip()] or [f"code {error.code}"]
            raise Unavailable(
                f"{self.name} cannot make the image: {said[-1]}", tip="unset WHARF_BUILDER: no builder is needed"
            ) from None


def engine(name: str) -> Engine:
    """Return the builder; raises Mistake when it is not installed, Unavailable when its engine does not answer."""
    if shutil.which(name) is None:
        raise _missing(name)
    if name == "docker":
        try:
            run(["docker", "version", "--format", "{{.Server.Version}}"], timeout=30)
        except (CommandFailed, subprocess.TimeoutExpired):
            raise Unavailable(
                "the Docker engine does not answer", tip="start it, or use another WHARF_BUILDER"
            ) from None
    return Engine(name)


def containerfile(registry: Registry, image: Image) -> str:
    """Return the instructions that make `image`; layer N is the file `N.tar.gz` beside them."""
    parent, config = image.parent, image.config
    lines = [f"FROM {registry.name(parent.repository)}@{parent.digest}" if parent else "FROM scratch"]
    lines += [f"ADD {number}.tar.gz /" for number in range(len(image.layers))]
    lines += [f"ENV {name}={json.dumps(value)}" for name, value in config.env.items()]
    lines += [f"LABEL {name}={json.dumps(value)}" for name, value in config.labels.items()]
    lines += [f"USER {config.user}"] * bool(config.user) + [f"WORKDIR {config.workdir}"] * bool(config.workdir)
    lines += [f"ENTRYPOINT {json.dumps(list(config.entrypoint))}"] * bool(config.entrypoint)
    lines += [f"CMD {json.dumps(list(config.command))}"] * bool(config.command)
    return "\n".join(lines) + "\n"


def _missing(name: str) -> Mistake:
    return Mistake(f"{VARIABLE}: {name} is not on the PATH", tip=f"{_INSTALL[name]}, or unset {VARIABLE}")


@functools.cache
def _buildah() -> list[str]:
    """Return the command with a storage of our own, so that the system's is left as it is."""
    for driver in ("overlay", "vfs"):  # vfs copies whole layers: only where overlay cannot be mounted
        folder = cache() / "buildah" / driver
        command = ["buildah", "--root", str(folder), "--runroot", str(folder / "run"), "--storage-driver", driver]
        try:
            run([*command, "info"], timeout=60)
        except CommandFailed:
            continue
        return command
    raise Unavailable("buildah has no storage driver that works here", tip=f"unset {VARIABLE}: no builder is needed")


def _new_bytes(registry: Registry, image: Image, digest: str) -> int:
    """Return the bytes of the layers that the parent does not have: at most that was sent."""

    def sizes(repository: str, reference: str) -> dict[str, int]:
        content = registry.manifest(repository, reference).content
        return {part["digest"]: part["size"] for part in [content["config"], *content["layers"]]}

    inherited = sizes(image.parent.repository, image.parent.digest) if image.parent else {}
    return sum(size for name, size in sizes(image.repository, digest).items() if name not in inherited)
