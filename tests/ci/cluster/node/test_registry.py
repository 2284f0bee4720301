"""The pause image: the same program gives the same digest, and a push sends what the registry lacks."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ci.cluster.node import registry
from ci.errors import Unavailable
from ci.files import sha256_bytes
from tests.ci.images.registry_server import RegistryServer, registry_server


@pytest.fixture
def server() -> Iterator[RegistryServer]:
    with registry_server() as state:
        yield state


def test_the_image_holds_the_program_and_its_digests_fit() -> None:
    layer, config, manifest = registry.image(b"program", "amd64")
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as tar:
        (entry,) = tar.getmembers()
        content = tar.extractfile(entry)
        assert content is not None
        assert (entry.name, entry.mode, content.read()) == ("pause", 0o755, b"program")
    read = json.loads(manifest)
    assert read["layers"][0]["digest"] == f"sha256:{sha256_bytes(layer)}"
    assert read["config"]["digest"] == f"sha256:{sha256_bytes(config)}"
    assert json.loads(config)["rootfs"]["diff_ids"] == [f"sha256:{sha256_bytes(gzip.decompress(layer))}"]


def test_the_same_program_gives_the_same_image() -> None:
    assert registry.image(b"program", "amd64") == registry.image(b"program", "amd64")
    assert registry.image(b"other", "amd64")[2] != registry.image(b"program", "amd64")[2]


def test_a_push_stores_blobs_and_manifest_and_sends_nothing_twice(server: RegistryServer, tmp_path: Path) -> None:
    program = tmp_path / "pause"
    program.write_bytes(b"program")
    reference = registry.push_pause(server.place, program, "amd64")
    assert reference.startswith("wharf.local/pause@sha256:")
    assert server.manifest("pause", reference.split("@")[1])["config"]["digest"] in server.blobs["pause"]
    before = server.received
    assert registry.push_pause(server.place, program, "amd64") == reference
    assert server.received == before + len(registry.image(b"program", "amd64")[2])  # the manifest alone


def test_a_refusal_is_said_in_one_line(server: RegistryServer, tmp_path: Path) -> None:
    server.fail = 507
    (tmp_path / "pause").write_bytes(b"program")
    with pytest.raises(Unavailable, match=r"^registry 127\.0\.0\.1:\d+: HEAD .*/pause: 507"):
        registry.push_pause(server.place, tmp_path / "pause", "amd64")


def test_a_registry_that_is_not_there_is_said(tmp_path: Path) -> None:
    (tmp_path / "pause").write_bytes(b"program")
    with pytest.raises(Unavailable, match=r"^registry 127\.0\.0\.1:1 cannot be reached: Connection refused$"):
        registry.push_pause("127.0.0.1:1", tmp_path / "pause", "amd64")
