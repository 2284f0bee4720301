"""The layer of Python packages: what a requirements file locks, installed on this machine and packed.

`uv` installs wheels for the image's platform into a folder, whatever this machine runs; nothing runs in the image. The
byte code is made here, and not checked against its source: a container with a read-only root could not write its own,
and would compile everything at every start.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ci.console import step
from ci.errors import Mistake, Unavailable
from ci.images import builder, layers
from ci.images.base import Base
from ci.images.builder import Config, Image, Parent
from ci.images.registry import Registry
from ci.shell import CommandFailed, run

SITE = "/opt/wharf/site"
REPOSITORY = "wharf-python"
_RECIPE = 1  # goes up when the way of packing changes
_LIMIT_S = 1800
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_GLIBC = "manylinux_2_28"  # of every distribution that is supported today
_SHARDS = 4  # fixed: which files one interpreter compiles, and in which order, shows in their bytes
_ENV = {
    "PYTHONPATH": SITE,
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "HOME": "/tmp",  # noqa: S108 - in a container; the only place that can be written to
}


def provide(registry: Registry, base: Base, requirements: str, python: str) -> Parent:
    """Return the image of `base` with the packages of `requirements` (pinned, with hashes), pushed once.

    Raises Mistake (no uv, a package without a wheel for this platform), Unavailable (package index, registry).
    """
    layer = install(requirements, python, base.architecture)
    tag = _digest(base.parent.digest, layer.digest)[:16]
    image = Image(REPOSITORY, tag, base.parent, [layer], Config(env=_ENV), base.architecture)
    published = builder.publish(registry, image)
    return Parent(REPOSITORY, published.digest)


def install(requirements: str, python: str, architecture: str) -> layers.Layer:
    """Return the layer of these packages, from the cache when it was packed before."""
    key = f"python-{_digest(str(_RECIPE), requirements, python, architecture, SITE, _GLIBC)[:32]}"
    with layers.locked("python"):
        if known := layers.cached(key):
            return known
        count = requirements.count("==")
        with step(f"install {count} packages for the image") as shown:
            with tempfile.TemporaryDirectory(prefix="wharf-site-") as folder:
                site = Path(folder) / "site"
                _install(requirements, python, architecture, site)
                _forget_programs(site)
                compile_all(site, SITE, python)
                layer = layers.pack(layers.tree(site, SITE, wanted=_wanted), key)
            shown.note = f"{layer.size / 1e6:.0f} MB"
    return layer


def compile_all(folder: Path, target: str, python: str) -> None:
    """Make the byte code of what is in `folder` and will be at `target` in an image; the same bytes each time."""
    parts = sorted(path for path in folder.iterdir() if path.name != "__pycache__")
    shards = [parts[number::_SHARDS] for number in range(_SHARDS)]
    with ThreadPoolExecutor(min(_SHARDS, os.cpu_count() or 1)) as pool:
        list(pool.map(lambda shard: _compile(folder, target, python, shard), [shard for shard in shards if shard]))


def _compile(folder: Path, target: str, python: str, shard: list[Path]) -> None:
    command = [*_interpreter(python), "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash"]
    command += ["-s", str(folder), "-p", target, *(str(path) for path in shard)]
    try:
        run(command, env={"PYTHONHASHSEED": "0", "PYTHONPATH": ""}, timeout=_LIMIT_S)
    except CommandFailed as error:
        # A package may hold files that are no Python of this version (templates): they stay as they are.
        if "SyntaxError" not in error.stderr:
            raise Unavailable(f"byte code for the image: {error.lines[-1]}") from None


@functools.cache
def _interpreter(python: str) -> list[str]:
    """Return a command that starts this version of Python: byte code is of one version only."""
    if python == f"{sys.version_info.major}.{sys.version_info.minor}":
        return [sys.executable]
    return [_uv(), "run", "--quiet", "--no-project", "--python", python, "python"]


def _uv() -> str:
    beside = Path(sys.executable).parent / "uv"
    found = shutil.which("uv") or (str(beside) if beside.is_file() else None)
    if found is None:
        raise Mistake("uv is not on the PATH, and it installs what an image needs", tip="`pip install uv`")
    return found


def _install(requirements: str, python: str, architecture: str, site: Path) -> None:
    listed = site.parent / "requirements.txt"
    listed.write_text(requirements, encoding="utf-8")
    platform = f"{_MACHINES[architecture]}-{_GLIBC}"
    command = [_uv(), "pip", "install", "--quiet", "--target", str(site), "--requirements", str(listed)]
    command += ["--require-hashes", "--no-deps", "--only-binary", ":all:", "--link-mode", "copy", "--no-compile"]
    command += ["--python-version", python, "--python-platform", platform]
    try:
        run(command, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"uv did not install the packages within {_LIMIT_S // 60} minutes") from None
    except CommandFailed as error:
        said = " ".join(re.sub(r"[^\x00-\x7f]", "", error.stderr).split())  # without the lines that uv draws
        kind = Mistake if "no wheels" in said or "hash" in said.lower() else Unavailable
        raise kind(
            f"uv cannot install what the image needs: {said[:400]}", tip="can the package index be reached?"
        ) from None


def _wanted(path: Path) -> bool:
    """Leave out programs, which name this machine's Python, and what uv notes for itself."""
    return path.parts[0] not in {"bin", ".lock"} and path.name != "uv_cache.json"


def _forget_programs(site: Path) -> None:
    """Take the programs out of the lists of installed files: their digests differ from machine to machine."""
    for record in site.glob("*.dist-info/RECORD"):
        lines = [
            line for line in record.read_text(encoding="utf-8").splitlines() if not line.startswith(("bin/", "../"))
        ]
        record.write_text("".join(f"{line}\n" for line in sorted(lines)), encoding="utf-8")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()
