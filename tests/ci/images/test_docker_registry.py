"""The client and the direct builder against a real registry, where Debian's `docker-registry` is installed."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Generator
from pathlib import Path

import pytest

from ci.images import builder, layers
from ci.images.builder import Config, Image, Parent
from ci.images.layers import Entry
from ci.images.registry import Registry
from ci.local.processes import free_port

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("docker-registry") is None, reason="docker-registry is not installed"),
]


@pytest.fixture
def place(tmp_path: Path) -> Generator[str]:
    port = free_port(range(5960, 5999))
    settings = tmp_path / "registry.yml"
    settings.write_text(
        "version: 0.1\nlog: {level: error}\n"
        f"storage: {{filesystem: {{rootdirectory: {tmp_path / 'data'}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n"
    )
    with (tmp_path / "registry.log").open("w") as log:
        process = subprocess.Popen(["docker-registry", "serve", str(settings)], stdout=log, stderr=log)
    try:
        until = time.monotonic() + 20
        while not Registry(f"127.0.0.1:{port}").answers():
            assert process.poll() is None and time.monotonic() < until, (tmp_path / "registry.log").read_text()
            time.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_images_share_layers_and_a_second_version_sends_little(place: str) -> None:
    registry = Registry(place)
    heavy = layers.pack([Entry("/heavy", content=bytes(range(256)) * 40_000)])
    base = builder.publish(registry, Image("base", "t", None, [heavy], Config(env={"PATH": "/bin"})))
    parent = Parent("base", base.digest)
    made = [
        builder.publish(
            registry, Image("tumor", f"v{n}", parent, [layers.pack([Entry("/model", content=b"%d" % n)])], Config())
        )
        for n in (1, 2)
    ]
    assert base.pushed > heavy.size and all(each.pushed < 3000 for each in made)
    for n, each in enumerate(made, 1):
        assert registry.digest("tumor", f"v{n}") == registry.digest("tumor", each.digest) == each.digest
        found = registry.manifest("tumor", each.digest).content
        assert found["layers"][0]["digest"] == heavy.digest
        assert b"".join(registry.blob("tumor", heavy.digest)) == heavy.path.read_bytes()
        assert registry.json_blob("tumor", found["config"]["digest"])["config"]["Env"] == ["PATH=/bin"]
    assert registry.digest("tumor", "sha256:" + "0" * 64) is None
