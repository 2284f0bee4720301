"""Layers: the same content gives the same bytes, whatever machine packs it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import time
from pathlib import Path

import pytest

from ci.errors import Unavailable
from ci.images import layers, zipped
from ci.images.layers import Entry


def members(layer: layers.Layer) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(layer.path) as tar:
        return {info.name: info for info in tar}


def make(folder: Path, names: list[str], when: int) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
        path.chmod(0o775 if name.endswith(".sh") else 0o640)
        os.utime(path, (when, when))
    (folder / "link").symlink_to("a.py")
    return folder


def test_the_same_files_give_the_same_layer_on_another_day_by_another_user(tmp_path: Path) -> None:
    names = ["a.py", "b/c.py", "b/run.sh"]
    one = layers.pack(layers.tree(make(tmp_path / "one", names, 1000), "/opt/x", owner=7))
    before = os.umask(0o077)
    try:
        two = layers.pack(reversed(layers.tree(make(tmp_path / "two", names[::-1], 2000), "/opt/x", owner=7)))
    finally:
        os.umask(before)
    assert one == two
    found = members(one)
    assert list(found) == ["opt", "opt/x", "opt/x/a.py", "opt/x/b", "opt/x/b/c.py", "opt/x/b/run.sh", "opt/x/link"]
    assert (found["opt/x/b/run.sh"].mode, found["opt/x/a.py"].mode) == (0o755, 0o644)
    assert {info.mtime for info in found.values()} == {0}
    assert (found["opt/x/a.py"].uid, found["opt/x/a.py"].gid, found["opt/x"].uid) == (7, 7, 0)
    assert found["opt/x/link"].linkname == "a.py"
    content = one.path.read_bytes()
    assert one.digest == f"sha256:{hashlib.sha256(content).hexdigest()}" and one.size == len(content)
    assert one.diff_id == f"sha256:{hashlib.sha256(gzip.decompress(content)).hexdigest()}"


def test_one_byte_more_is_another_layer() -> None:
    assert layers.pack([Entry("/a", content=b"1")]).digest != layers.pack([Entry("/a", content=b"2")]).digest
    assert (
        layers.pack([Entry("/a", content=b"1")]).digest != layers.pack([Entry("/a", content=b"1", mode=0o600)]).digest
    )


def test_a_layer_is_found_again_by_its_key_until_it_is_damaged() -> None:
    assert layers.cached("key") is None
    made = layers.pack([Entry("/a", content=b"1")], "key")
    assert layers.cached("key") == made
    made.path.write_bytes(made.path.read_bytes()[:-1])
    assert layers.cached("key") is None
    assert layers.pack([Entry("/a", content=b"1")], "key") == made and layers.cached("key") == made


def test_what_nothing_used_for_a_month_is_removed() -> None:
    old, kept = layers.pack([Entry("/a", content=b"1")], "old"), layers.pack([Entry("/a", content=b"2")], "kept")
    month = time.time() - 31 * 24 * 3600
    for path in (layers.cache() / "layers").iterdir():
        os.utime(path, (month, month))
    assert layers.cached("kept") == kept  # this is a use
    layers.pack([Entry("/a", content=b"3")])
    assert layers.cached("old") is None and not old.path.exists() and layers.cached("kept") == kept


def test_an_archive_is_compressed_as_it_is(tmp_path: Path) -> None:
    archive = tmp_path / "base.tar"
    archive.write_bytes(os.urandom(100) * 1000)
    layer = layers.compress(archive, "base")
    assert gzip.decompress(layer.path.read_bytes()) == archive.read_bytes() and layers.cached("base") == layer


def test_a_file_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="an image layer cannot be written"):
        layers.pack([Entry("/a", source=tmp_path / "gone")], "key")
    assert not list((layers.cache() / "layers").iterdir())


@pytest.mark.parametrize("length", [0, 1, 999, 1000, 5500])
def test_the_bytes_do_not_depend_on_the_number_of_cores(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipped, "_PIECE", 1000)
    data = bytes(range(256)) * (length // 256) + b"x" * (length % 256)
    made: list[bytes] = []
    for cores in (1, 3):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        target = io.BytesIO()
        stream = zipped.Zipped(target)
        for at in range(0, length, 300):
            stream.write(data[at : at + 300])
        stream.close()
        made.append(target.getvalue())
        assert stream.size == len(made[-1]) and stream.packed.digest() == hashlib.sha256(made[-1]).digest()
        assert gzip.decompress(made[-1]) == data and stream.plain.digest() == hashlib.sha256(data).digest()
    assert made[0] == made[1]
