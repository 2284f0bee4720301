"""Image layers: archives whose bytes depend on nothing but what is in them.

Names are sorted; owners, modes and times are set, so that neither the umask, the user nor the clock of a machine shows.
A finished layer is kept in the cache under the key of its inputs: packing the same dependencies is done once.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from ci.errors import Unavailable
from ci.files import write_atomic
from ci.images.zipped import Zipped

_CHUNK = 1 << 20
_KEPT_S = 30 * 24 * 3600


@dataclass(frozen=True)
class Entry:
    """A file (`source` or `content`), a symbolic link (`link`) or a folder (none of them) in an image."""

    path: str  # absolute, in the image
    source: Path | None = None
    content: bytes | None = None
    link: str | None = None
    mode: int = 0o755
    owner: int = 0  # user and group


@dataclass(frozen=True)
class Layer:
    """A packed layer in the cache."""

    path: Path
    digest: str  # "sha256:…" of the compressed archive: the name of the blob in a registry
    diff_id: str  # "sha256:…" of the archive itself
    size: int  # bytes of the compressed archive


def cache() -> Path:
    """Return the folder for what can be made again, `~/.cache/modelwharf`; XDG_CACHE_HOME is respected."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelwharf"


@contextmanager
def locked(name: str) -> Generator[Path]:
    """Let one process at a time make `name` in the cache, and give its folder, which may be empty."""
    folder = cache() / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def tree(folder: Path, target: str, *, owner: int = 0, wanted: Callable[[Path], bool] | None = None) -> list[Entry]:
    """Return the entries that bring the files below `folder` to `target`; `wanted` chooses by the relative path.

    Of a mode only "may be executed" is kept. Symbolic links are kept as they are; empty folders are left out.
    """
    entries: list[Entry] = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if wanted is not None and not wanted(relative):
            continue
        where = f"{target.rstrip('/')}/{relative.as_posix()}"
        if path.is_symlink():
            entries.append(Entry(where, link=str(path.readlink()), owner=owner))
        elif path.is_file():
            executable = path.stat().st_mode & 0o100
            entries.append(Entry(where, source=path, mode=0o755 if executable else 0o644, owner=owner))
    return entries


def pack(entries: Iterable[Entry], key: str | None = None) -> Layer:
    """Return the layer of `entries`; with `key`, a hash of all inputs, it is kept and found again by `cached`."""
    with _finished(key) as (archive, finish):
        with tarfile.open(fileobj=cast("IO[bytes]", archive), mode="w|", format=tarfile.PAX_FORMAT) as tar:
            for entry in _with_parents(entries):
                _add(tar, entry)
        return finish()


def compress(archive: Path, key: str | None = None) -> Layer:
    """Return the layer that is the tar file `archive` (made reproducible by its maker)."""
    with _finished(key) as (target, finish):
        with archive.open("rb") as source:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
        return finish()


def cached(key: str) -> Layer | None:
    """Return the layer that was packed under `key`, None when the cache has none that is whole."""
    try:
        raw = json.loads((_folder() / f"{key}.json").read_bytes())
        layer = Layer(_folder() / raw["file"], raw["digest"], raw["diff_id"], raw["size"])
        if layer.path.stat().st_size != layer.size:
            return None
        for used in (layer.path, _folder() / f"{key}.json"):
            os.utime(used)
        return layer
    except (OSError, ValueError, KeyError):
        return None


def _folder() -> Path:
    return cache() / "layers"


def _forget_unused() -> None:
    """Remove layers that nothing has used for a month: each lock file and each version of a model leaves some."""
    for path in _folder().iterdir():
        with suppress(FileNotFoundError):  # another process does the same
            if path.stat().st_mtime < time.time() - _KEPT_S:
                path.unlink()


def _with_parents(entries: Iterable[Entry]) -> list[Entry]:
    """Return `entries` and the folders above them, sorted; a folder that is not named belongs to root."""
    named = {entry.path.rstrip("/"): entry for entry in entries}
    for path in list(named):
        above = Path(path).parent
        while above != Path("/"):
            named.setdefault(above.as_posix(), Entry(above.as_posix()))
            above = above.parent
    return [named[path] for path in sorted(named)]


def _add(tar: tarfile.TarFile, entry: Entry) -> None:
    info = tarfile.TarInfo(entry.path.strip("/"))
    info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.owner, entry.owner, 0
    if entry.link is not None:
        info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.link, 0o777
        tar.addfile(info)
    elif entry.content is not None:
        info.size = len(entry.content)
        tar.addfile(info, io.BytesIO(entry.content))
    elif entry.source is not None:
        with entry.source.open("rb") as stream:
            info.size = os.fstat(stream.fileno()).st_size
            tar.addfile(info, stream)
    else:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)


@contextmanager
def _finished(key: str | None) -> Generator[tuple[Zipped, Callable[[], Layer]]]:
    """Give a stream for an archive, and what makes a layer of it; an unfinished one leaves nothing in the cache."""
    _folder().mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=_folder(), prefix=".")
    draft = Path(name)
    try:
        with os.fdopen(handle, "wb") as raw:
            archive = Zipped(raw)

            def finish() -> Layer:
                archive.close()
                raw.close()
                digest = archive.packed.hexdigest()
                path = _folder() / f"{digest}.tar.gz"
                layer = Layer(path, f"sha256:{digest}", f"sha256:{archive.plain.hexdigest()}", archive.size)
                draft.replace(path)
                _forget_unused()
                if key:
                    known = {"file": path.name, "digest": layer.digest, "diff_id": layer.diff_id, "size": layer.size}
                    write_atomic(_folder() / f"{key}.json", json.dumps(known))
                return layer

            try:
                yield archive, finish
            finally:
                archive.abandon()
    except OSError as error:
        raise Unavailable(
            f"an image layer cannot be written to {_folder()}: {error.strerror or error}", tip="is the disk full?"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
