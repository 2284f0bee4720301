"""The images of the node's own programs: Argo CD, Redis, Argo Rollouts and CoreDNS.

Elsewhere these come from their makers' registries. The layout is that of upstream's images, so that upstream's install
manifests work with them; what runs is what `ci.cluster.node.tools` built from pinned sources.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ci.images import base, builder, layers
from ci.images.base import ARGOCD_USER, Base
from ci.images.builder import Config, Image
from ci.images.layers import Entry, Layer
from ci.images.registry import Registry

if TYPE_CHECKING:
    from ci.cluster.access import Access
    from ci.cluster.node.tools import Tools

_ARGOCD = "/usr/local/bin/argocd"
# One program that is what it is called (upstream's Dockerfile has these links).
_ARGOCD_NAMES = (
    "argocd-application-controller",
    "argocd-applicationset-controller",
    "argocd-cmp-server",
    "argocd-commit-server",
    "argocd-dex",
    "argocd-k8s-auth",
    "argocd-notifications",
    "argocd-repo-server",
    "argocd-server",
)
# Argo CD asks git and gpg through these two names. A signature that is missing or not trusted ends with 1: that is an
# answer, which Argo CD reads from the text, and not a failure.
_GIT_VERIFY = """#!/bin/sh
kind=commit
git describe --exact-match "$1" >/dev/null 2>&1 && kind=tag
output=$(git "verify-$kind" "$1" 2>&1)
code=$?
if [ $code -gt 1 ]; then printf '%s\\n' "$output" >&2; exit $code; fi
case "$code $kind $output" in "1 tag error:"*) output= ;; esac
printf '%s\\n' "$output"
"""
_GPG = """#!/bin/sh
output=$(gpg "$@" 2>&1)
code=$?
if [ $code -gt 1 ]; then printf '%s\\n' "$output" >&2; exit $code; fi
printf '%s\\n' "$output"
"""


def ensure(access: Access, tools: Tools) -> dict[str, str]:
    """Return references by digest for `argocd`, `redis`, `rollouts` and `coredns`, pushed unless they are there.

    Raises Mistake or Unavailable as `ci.images.base.provide` does.
    """
    registry = Registry(access.push)
    common = base.provide(registry, access, "tools")
    return {
        "argocd": _argocd(registry, access, common, tools.path("argocd")),
        "redis": _redis(registry, access, common),
        "rollouts": static(
            registry, access, "wharf-rollouts", "/bin/rollouts-controller", tools.path("rollouts-controller")
        ),
        "coredns": static(registry, access, "wharf-coredns", "/coredns", tools.path("coredns")),
    }


def static(registry: Registry, access: Access, repository: str, path: str, program: Path, user: str = "") -> str:
    """Return the reference of an image with nothing in it but `program`, statically linked, at `path`.

    `user` is a number; the default is one that is not root.
    """
    layer = _program(program, [Entry(path, source=program)])
    config = Config(user=user or str(ARGOCD_USER), entrypoint=[path], env={"PATH": "/usr/local/bin:/usr/bin:/bin"})
    return _push(registry, access, Image(repository, "", None, [layer], config, base.architecture(access)))


def _argocd(registry: Registry, access: Access, common: Base, program: Path) -> str:
    folder = _ARGOCD.rpartition("/")[0]
    entries = [
        Entry(_ARGOCD, source=program),
        *(Entry(f"{folder}/{name}", link=_ARGOCD) for name in _ARGOCD_NAMES),
        Entry(f"{folder}/git-verify-wrapper.sh", content=_GIT_VERIFY.encode()),
        Entry(f"{folder}/gpg-wrapper.sh", content=_GPG.encode()),
        Entry("/app/config/ssh/ssh_known_hosts", content=b"", mode=0o644),
        Entry("/etc/ssh/ssh_known_hosts", link="/app/config/ssh/ssh_known_hosts"),
        Entry("/app/config/tls"),
        Entry("/app/config/gpg/source"),
        Entry("/app/config/gpg/keys", owner=ARGOCD_USER, mode=0o700),
    ]
    config = Config(
        env={"USER": "argocd", "HOME": "/home/argocd"},
        user=str(ARGOCD_USER),
        workdir="/home/argocd",
        entrypoint=["/usr/bin/tini", "--"],
    )
    image = Image("wharf-argocd", "", common.parent, [_program(program, entries)], config, common.architecture)
    return _push(registry, access, image)


def _redis(registry: Registry, access: Access, common: Base) -> str:
    # Upstream's image starts redis-server with the arguments that it is given.
    config = Config(user=str(ARGOCD_USER), workdir="/tmp", entrypoint=["redis-server"])  # noqa: S108 - in a container
    return _push(registry, access, Image("wharf-redis", "", common.parent, [], config, common.architecture))


def _program(program: Path, entries: Sequence[Entry]) -> Layer:
    """Return a layer that is packed once for each build of `program`: they have up to 200 MB."""
    known = program.stat()
    rest = [(entry.path, entry.content, entry.link, entry.mode, entry.owner) for entry in entries]
    inputs = repr((str(program), known.st_size, known.st_mtime_ns, rest))
    key = f"program-{hashlib.sha256(inputs.encode()).hexdigest()[:32]}"
    return layers.cached(key) or layers.pack(entries, key)


def _push(registry: Registry, access: Access, image: Image) -> str:
    """Push under a tag that is made of all that goes in."""
    inputs = repr((image.parent, [layer.digest for layer in image.layers], image.config, image.architecture))
    tag = hashlib.sha256(inputs.encode()).hexdigest()[:16]
    named = Image(image.repository, tag, image.parent, image.layers, image.config, image.architecture)
    return f"{access.registry}/{image.repository}@{builder.publish(registry, named).digest}"
