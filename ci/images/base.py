"""The base images: `serving` (Debian, Python, certificates) and `tools` (the same with git, gnupg, ssh and Redis).

Which one is used, the first that is given:

1. the environment variables WHARF_BASE_IMAGE and WHARF_TOOLS_IMAGE;
2. `base-image` and `tools-image` under `[tool.modelwharf]` in pyproject.toml: the team's choice, by digest;
3. one built here from Debian packages: on the `node` provider, and wherever Docker Hub cannot be reached;
4. the official Python image of Docker Hub, its tag resolved to a digest now.

A base is copied into the registry that the images go to, so that layers are shared there.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ci.console import step
from ci.errors import Mistake, Unavailable
from ci.images import builder, layers
from ci.images.builder import Config, Image, Parent
from ci.images.registry import Registry
from ci.rendering.manifests import USER
from ci.shell import CommandFailed, run

if TYPE_CHECKING:
    from ci.cluster.access import Access
    from ci.workspace import Workspace

Kind = Literal["serving", "tools"]
PYTHON = "3.11"  # of Debian 12
PLATFORM = "WHARF_PLATFORM"
ARGOCD_USER = 999  # that Argo CD's manifests and gpg's folder modes are made for; also Redis's
_RECIPE = 2  # goes up when the way of building changes
_SUITE = "bookworm"
_LIMIT_S = 1800
_PACKAGES: dict[Kind, tuple[str, ...]] = {
    "serving": ("ca-certificates", "libgomp1", "libstdc++6", "python3"),
    "tools": (
        "ca-certificates",
        "git",
        "gnupg",
        "libgomp1",
        "libstdc++6",
        "openssh-client",
        "python3",
        "redis-server",
        "tini",
    ),
}
_SETTING: dict[Kind, tuple[str, str]] = {
    "serving": ("WHARF_BASE_IMAGE", "base-image"),
    "tools": ("WHARF_TOOLS_IMAGE", "tools-image"),
}
_OFFICIAL: dict[Kind, str] = {
    "serving": f"docker.io/library/python:{PYTHON}-slim-{_SUITE}",
    "tools": f"docker.io/library/python:{PYTHON}-{_SUITE}",  # the large one has git, gnupg and ssh
}
_REFERENCE = re.compile(
    r"(?P<host>[a-z0-9.-]+(?::\d+)?)/(?P<repository>[a-z0-9._/-]+?)(?::(?P<tag>[\w.-]+))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
# Debian's byte code notes the time of its source, which the image sets to 1970: Python would compile all of it anew
# at every start of a container whose root cannot be written to.
_HOOKS = (
    "ln -s python3 {root}/usr/bin/python",
    "chroot {root} python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3 /usr/lib/python"
    + PYTHON,
    f"echo bentoml:x:{USER}:{USER}::/home/bentoml:/usr/sbin/nologin >> {{root}}/etc/passwd",
    f"echo bentoml:x:{USER}: >> {{root}}/etc/group",
    f"mkdir -p {{root}}/home/bentoml && chown {USER}:{USER} {{root}}/home/bentoml",
)
_TOOLS_HOOKS = (
    f"echo argocd:x:{ARGOCD_USER}:{ARGOCD_USER}::/home/argocd:/usr/sbin/nologin >> {{root}}/etc/passwd",
    f"echo argocd:x:{ARGOCD_USER}: >> {{root}}/etc/group",
    f"mkdir -p {{root}}/home/argocd && chown {ARGOCD_USER}:0 {{root}}/home/argocd && chmod 0775 {{root}}/home/argocd",
)
# What differs from machine to machine, and what only an installed system needs: nobody becomes root by `su` here.
_CLEAN = (
    "find {root} -xdev -type f -perm /6000 -exec chmod ug-s {} +",
    "rm -rf {root}/etc/apt/sources.list {root}/etc/apt/sources.list.d {root}/etc/resolv.conf {root}/etc/hostname",
    "rm -rf {root}/var/log {root}/var/cache/debconf {root}/var/cache/ldconfig && mkdir -m 0755 {root}/var/log",
    "rm -f {root}/etc/passwd- {root}/etc/group- {root}/etc/shadow- {root}/etc/gshadow-",
)
_EXCLUDED = ("/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/doc/*")


@dataclass(frozen=True)
class Base:
    """A base image in the registry that images are pushed to."""

    parent: Parent
    reference: str  # as the cluster pulls it: `<registry>/<repository>@sha256:…`
    architecture: str  # "amd64" or "arm64"


def ensure(access: Access, kind: Kind = "serving", workspace: Workspace | None = None) -> str:
    """Return the reference by digest of a base image, pushed to the registry of `access`; see `provide`."""
    return provide(Registry(access.push), access, kind, workspace).reference


def provide(registry: Registry, access: Access, kind: Kind = "serving", workspace: Workspace | None = None) -> Base:
    """Bring a base image into `registry`, unless it is there.

    Raises Mistake (a setting that is no reference, nothing to build with), Unavailable (registry, package mirror).
    """
    machine = architecture(access)
    chosen = _chosen(kind, workspace)
    if chosen is None and access.provider != "node" and _hub_answers():
        chosen = _OFFICIAL[kind]
    found = _copied(registry, chosen, kind, machine) if chosen else _built(registry, kind, machine)
    return Base(found, f"{access.registry}/{found.repository}@{found.digest}", machine)


def architecture(access: Access) -> str:
    """Return the kind of processor that images are made for: WHARF_PLATFORM, or what the provider's nodes have."""
    given = os.environ.get(PLATFORM, "")
    if given:
        found = re.fullmatch(r"linux/(amd64|arm64)", given)
        if found is None:
            raise Mistake(f"{PLATFORM}: '{given}' is not known", tip="linux/amd64 or linux/arm64")
        return found.group(1)
    return "amd64" if access.provider == "existing" else builder.architecture()


def _chosen(kind: Kind, workspace: Workspace | None) -> str | None:
    """Return what the user or the team set, None when nothing is set."""
    variable, key = _SETTING[kind]
    if given := os.environ.get(variable):
        _parsed(given, variable)
        return given
    if workspace is None:
        return None
    path = workspace.root / "pyproject.toml"
    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8")).get("tool", {}).get("modelwharf", {})
    except FileNotFoundError:
        return None
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise Mistake(f"pyproject.toml: cannot be read: {error}") from None
    value = raw.get(key)
    where = f"pyproject.toml: tool.modelwharf.{key}"
    if value is not None and not (isinstance(value, str) and _parsed(value, where)["digest"]):
        raise Mistake(f"{where}: must name a digest, not {value!r}", tip="registry.example/name@sha256:…")
    return value


def _parsed(reference: str, where: str) -> dict[str, str | None]:
    found = _REFERENCE.fullmatch(reference)
    if found is None or not (found["tag"] or found["digest"]):
        raise Mistake(f"{where}: '{reference}' is no image", tip="registry.example/name@sha256:…, host included")
    return found.groupdict()


def _hub_answers() -> bool:
    return Registry("docker.io").answers()


def _copied(registry: Registry, reference: str, kind: Kind, machine: str) -> Parent:
    """Bring one platform of an image of another registry into ours."""
    parts = _parsed(reference, _SETTING[kind][0])
    host, repository = str(parts["host"]), str(parts["repository"])
    wanted = parts["digest"] or str(parts["tag"])
    target = f"wharf-{kind}-base"
    source = Registry(host)
    known = hashlib.sha256(f"{host}/{repository}@{wanted} {machine}".encode()).hexdigest()[:16]
    if parts["digest"] and (found := registry.digest(target, known)):
        return Parent(target, found)
    with step(f"base image {reference}") as shown:
        found = source.for_platform(repository, wanted, machine)
        for part in [found.content["config"], *found.content["layers"]]:
            content = source.blob(repository, part["digest"])
            registry.put_blob(target, part["digest"], content, part["size"])
        digest = registry.put_manifest(target, known, found.raw, found.content["mediaType"])
        shown.note = builder.size(registry.pushed)
    return Parent(target, digest)


def _built(registry: Registry, kind: Kind, machine: str) -> Parent:
    layer = build(kind, machine)
    target = f"wharf-{kind}-base"
    config = Config(
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"},
        labels={"org.opencontainers.image.title": target},
        command=["python3"],
    )
    published = builder.publish(
        registry, Image(target, layer.digest.partition(":")[2][:16], None, [layer], config, machine)
    )
    return Parent(target, published.digest)


def build(kind: Kind, machine: str) -> layers.Layer:
    """Return the layer of a base, made from Debian packages unless the cache has it.

    Raises Mistake where it cannot be built, Unavailable when the packages cannot be fetched.
    """
    inputs = [_RECIPE, _SUITE, machine, _PACKAGES[kind], *_hooks(kind), _EXCLUDED]
    key = f"base-{hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:32]}"
    with layers.locked(f"base/{kind}"):
        if known := layers.cached(key):
            return known
        if shutil.which("mmdebstrap") is None:
            variable, setting = _SETTING[kind]
            raise Mistake(
                "no base image: mmdebstrap, which makes one from Debian packages, is not installed",
                tip=f"`apt-get install mmdebstrap`, or name an image: {variable} or `{setting}` in pyproject.toml",
            )
        with step(f"{kind} base image from Debian packages (about a minute)"):
            return _debian(kind, machine, key)


def _hooks(kind: Kind) -> list[str]:
    return [*_HOOKS, *(_TOOLS_HOOKS if kind == "tools" else ()), *_CLEAN]


def _debian(kind: Kind, machine: str, key: str) -> layers.Layer:
    with tempfile.TemporaryDirectory(prefix="wharf-base-") as folder:
        archive = Path(folder) / "base.tar"
        command = ["mmdebstrap", "--quiet", "--variant=essential", f"--architectures={machine}"]
        command += [f"--include={','.join(_PACKAGES[kind])}"]
        command += [f"--dpkgopt=path-exclude={pattern}" for pattern in _EXCLUDED]
        command += ["--dpkgopt=path-include=/usr/share/doc/*/copyright"]  # the licences travel with the programs
        command += ["--customize-hook=" + hook.replace("{root}", '"$1"') for hook in _hooks(kind)]
        try:
            run([*command, _SUITE, str(archive), *_sources()], env={"SOURCE_DATE_EPOCH": "0"}, timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"mmdebstrap did not finish within {_LIMIT_S // 60} minutes") from None
        except CommandFailed as error:
            said = [line for line in error.stderr.splitlines() if re.match(r"(E|W):", line)] or ["no reason given"]
            raise Unavailable(
                f"mmdebstrap cannot make the {kind} base image: {said[-1].removeprefix('E: ')}",
                tip=f"is a Debian mirror reachable? Or name an image: {_SETTING[kind][0]}",
            ) from None
        return layers.compress(archive, key)


def _sources() -> list[str]:
    """Return this machine's own package sources when it runs the same Debian; else mmdebstrap takes Debian's own."""
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
    except OSError:
        return []
    if f"VERSION_CODENAME={_SUITE}" not in release or "ID=debian" not in release.splitlines():
        return []
    files = [Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")]
    return [str(path) for path in files if path.is_file() and path.stat().st_size][:1]
