"""Builders: without any, the image that comes out; with a program, what it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.errors import Mistake, Unavailable
from ci.images import builder, engines, layers
from ci.images.builder import Config, Image, Parent
from ci.images.layers import Entry
from ci.images.registry import Registry
from tests.ci.images.registry_server import RegistryServer

DIGEST = "sha256:" + "d" * 64


def layer(content: str) -> layers.Layer:
    return layers.pack([Entry("/file", content=content.encode())])


def base(server: RegistryServer) -> Parent:
    config = Config(env={"PATH": "/bin", "A": "1"}, user="1", command=["sh"], labels={"kept": "yes"})
    made = builder.publish(Registry(server.place), Image("base", "t", None, [layer("base")], config, "arm64"))
    return Parent("base", made.digest)


def test_an_image_is_its_parent_its_layers_and_its_settings(server: RegistryServer) -> None:
    parent, own = base(server), layer("own")
    config = Config(env={"A": "2", "B": "3"}, labels={"own": "1"}, user="2:2", workdir="/w", entrypoint=["run"])
    made = builder.publish(Registry(server.place), Image("app", "v1", parent, [own], config))
    assert server.manifest("app", made.digest) == server.manifest("app", "v1")
    manifest, stored = server.manifest("app", "v1"), server.config("app", "v1")
    assert [each["digest"] for each in manifest["layers"]] == [layer("base").digest, own.digest]
    assert stored["rootfs"]["diff_ids"] == [layer("base").diff_id, own.diff_id]
    assert (stored["os"], stored["architecture"], stored["created"]) == ("linux", "arm64", "1970-01-01T00:00:00Z")
    assert stored["config"] == {
        "Env": ["PATH=/bin", "A=2", "B=3"],
        "Labels": {"kept": "yes", "own": "1"},
        "User": "2:2",
        "WorkingDir": "/w",
        "Entrypoint": ["run"],
        "Cmd": ["sh"],
    }


def test_only_what_the_registry_lacks_is_sent_and_the_same_tag_is_not_made_again(
    server: RegistryServer, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, registry = base(server), Registry(server.place)
    before = server.received
    first = builder.publish(registry, Image("app", "v1", parent, [layer("code"), layer("model 1")], Config()))
    assert first.pushed == server.received - before  # the base is shared, not sent
    before = server.received
    second = builder.publish(registry, Image("app", "v2", parent, [layer("code"), layer("model 2")], Config()))
    assert second.pushed == server.received - before and first.digest != second.digest
    sizes = layer("model 2").size, server.manifest("app", "v2")["config"]["size"], len(server.manifests["app", "v2"][0])
    assert second.pushed == sum(sizes)
    before = server.received
    again = builder.publish(registry, Image("app", "v2", parent, [layer("code"), layer("model 2")], Config()))
    assert (again.digest, again.pushed, server.received) == (second.digest, 0, before)
    assert f"push {server.place}/app  {second.pushed / 1000:.1f} kB" in capsys.readouterr().err


def test_a_registry_that_does_not_share_gets_the_layers_of_the_parent(server: RegistryServer) -> None:
    parent, server.mounts = base(server), False
    builder.publish(Registry(server.place), Image("app", "v1", parent, [], Config()))
    assert server.blobs["app"] >= {layer("base").digest}


def test_builders_that_are_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert builder.choose().name == "direct"
    monkeypatch.setenv("WHARF_BUILDER", "dokcer")
    with pytest.raises(Mistake, match=r"WHARF_BUILDER: unknown builder 'dokcer' \(did you mean 'docker'\?\)"):
        builder.choose()
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("docker", "podman", "buildah"):
        monkeypatch.setenv("WHARF_BUILDER", name)
        with pytest.raises(Mistake, match=f"WHARF_BUILDER: {name} is not on the PATH") as caught:
            builder.choose()
        assert "install" in caught.value.tip
    script(tmp_path / "docker", "exit 1")
    monkeypatch.setenv("WHARF_BUILDER", "docker")
    with pytest.raises(Unavailable, match="the Docker engine does not answer"):
        builder.choose()


def test_kinds_of_processors() -> None:
    assert [builder.architecture(name) for name in ("x86_64", "arm64", "AARCH64")] == ["amd64", "arm64", "arm64"]
    with pytest.raises(Mistake, match="processors of the kind 'riscv64'"):
        builder.architecture("riscv64")


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize("name", ["docker", "podman", "buildah"])
def test_a_program_builds_and_pushes(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    parent = base(server)
    direct = builder.publish(Registry(server.place), Image("app", "direct", parent, [layer("own")], Config()))
    log, kept = tmp_path / "log", tmp_path / "kept"
    # Plays the program: notes its arguments, keeps the Containerfile, says the digest as the real ones do.
    script(
        tmp_path / name,
        f'echo "$@" >> {log}\n'
        f'for word in "$@"; do case $word in */Containerfile) cp $word {kept} ;; esac; done\n'
        f'while [ $# -gt 0 ]; do [ "$1" = --digestfile ] && printf {direct.digest} > "$2"; shift; done\n'
        f"echo 'v1: digest: {direct.digest} size: 1'",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("WHARF_BUILDER", name)
    engines._buildah.cache_clear()
    config = Config(env={"A": 'a "b"'}, labels={"l": "1"}, user="2", workdir="/w", entrypoint=["e"], command=["c", "d"])
    made = builder.publish(Registry(server.place), Image("app", "v1", parent, [layer("own")], config))
    engines._buildah.cache_clear()
    config_size = server.manifest("app", "direct")["config"]["size"]
    assert made.digest == direct.digest and made.pushed == layer("own").size + config_size
    assert kept.read_text() == (
        f"FROM {server.place}/base@{parent.digest}\nADD 0.tar.gz /\n"
        'ENV A="a \\"b\\""\nLABEL l="1"\nUSER 2\nWORKDIR /w\nENTRYPOINT ["e"]\nCMD ["c", "d"]\n'
    )
    said = log.read_text().splitlines()
    build = next(line for line in said if f"--tag {server.place}/app:v1" in line)
    assert ("--timestamp 0" in build) == (name != "docker") and ("SOURCE_DATE_EPOCH=0" in build) == (name == "docker")
    assert ("--tls-verify=false" in build) == (name != "docker")
    assert ("--isolation chroot" in build) == (name == "buildah")
    assert any("push" in line.split() for line in said)


def test_what_a_program_says_last_is_the_reason(
    server: RegistryServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(tmp_path / "podman", "echo 'long story' >&2; echo 'Error: no space left' >&2; exit 125")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("WHARF_BUILDER", "podman")
    with pytest.raises(Unavailable, match="podman cannot make the image: Error: no space left"):
        builder.publish(Registry(server.place), Image("app", "v1", None, [layer("own")], Config()))
