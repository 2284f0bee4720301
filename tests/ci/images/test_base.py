"""The base image: who chooses it, how it comes into the registry, and what is said when there is none."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from ci.cluster.access import Access
from ci.errors import Mistake, Unavailable
from ci.images import base, layers
from ci.images.registry import INDEX, MANIFEST
from ci.workspace import Workspace
from tests.ci.images.registry_server import RegistryServer, registry_server

DEBIAN = """#!/bin/sh
# Plays mmdebstrap: the archive is its first argument that ends in .tar.
echo "$SOURCE_DATE_EPOCH $@" >> {log}
for word in "$@"; do case $word in *.tar) tar --sort=name --mtime=@0 -cf "$word" -C {root} . ;; esac; done
"""


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program in the place of mmdebstrap; returns its log."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "file").write_text("debian")
    log = tmp_path / "log"
    program = tmp_path / "bin" / "mmdebstrap"
    program.parent.mkdir()
    program.write_text(DEBIAN.format(log=log, root=tmp_path / "root"))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return log


def published(server: RegistryServer, repository: str) -> tuple[str, str]:
    """Store an image list for two platforms; return the digests of the list and of the amd64 image."""
    entries: list[dict[str, object]] = []
    digests: dict[str, str] = {}
    for machine in ("arm64", "amd64"):
        manifest = {
            "mediaType": MANIFEST,
            "config": server.add(repository, f'{{"os": "linux", "architecture": "{machine}"}}'.encode()),
            "layers": [{**server.add(repository, machine.encode()), "mediaType": "x"}],
        }
        digests[machine] = server.add_manifest(repository, machine, manifest)
        platform = {"os": "linux", "architecture": machine}
        entries.append({"digest": digests[machine], "platform": platform})
    index = server.add_manifest(repository, "3.11", {"mediaType": INDEX, "manifests": entries})
    return index, digests["amd64"]


def test_one_is_built_once_where_no_registry_gives_one(access: Access, server: RegistryServer, debian: Path) -> None:
    first, again = base.ensure(access), base.ensure(access)
    assert first == again and first.startswith("wharf.local/wharf-serving-base@sha256:")
    assert len(debian.read_text().splitlines()) == 1
    line = debian.read_text()
    assert line.startswith("0 ") and "--variant=essential" in line and "--include=ca-certificates," in line
    layer = server.manifest("wharf-serving-base", first.partition("@")[2])["layers"][0]
    assert layer["digest"] in server.blobs["wharf-serving-base"]
    assert base.ensure(access, "tools") != first and "openssh-client" in debian.read_text().splitlines()[1]


def test_kind_and_existing_build_one_only_without_docker_hub(
    access: Access, debian: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def copied(_registry: object, reference: str, kind: base.Kind, machine: str) -> base.Parent:
        asked.append(f"{reference} {kind} {machine}")
        return base.Parent("copied", "sha256:0")

    monkeypatch.setattr(base, "_copied", copied)
    monkeypatch.setattr(base, "_hub_answers", lambda: True)
    existing = replace(access, provider="existing")
    assert base.ensure(existing) == "wharf.local/copied@sha256:0"
    assert asked == ["docker.io/library/python:3.11-slim-bookworm serving amd64"] and not debian.exists()
    monkeypatch.setattr(base, "_hub_answers", lambda: False)
    assert "wharf-serving-base" in base.ensure(existing) and debian.exists()


def test_without_the_program_it_is_said_what_to_do(
    access: Access, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Mistake, match="mmdebstrap, which makes one from Debian packages, is not installed") as caught:
        base.ensure(access)
    assert "WHARF_BASE_IMAGE or `base-image` in pyproject.toml" in caught.value.tip


def test_a_build_that_fails_says_why_and_leaves_nothing(access: Access, debian: Path) -> None:
    program = debian.parent / "bin" / "mmdebstrap"
    program.write_text("#!/bin/sh\necho 'I: starting' >&2; echo 'E: apt-get update failed' >&2; exit 25\n")
    with pytest.raises(Unavailable, match="cannot make the serving base image: apt-get update failed"):
        base.ensure(access)
    assert not (layers.cache() / "layers").exists()


def test_a_chosen_image_is_copied_for_one_platform(
    access: Access, server: RegistryServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with registry_server() as other:
        index, image = published(other, "library/python")
        monkeypatch.setenv("WHARF_BASE_IMAGE", f"{other.place}/library/python:3.11@{index}")
        monkeypatch.setenv("WHARF_PLATFORM", "linux/amd64")
        made = base.ensure(access)
        assert made == f"wharf.local/wharf-serving-base@{image}"
        assert server.config("wharf-serving-base", image)["architecture"] == "amd64"
        other.fail = 500  # by digest it is known, and nobody is asked again
        assert base.ensure(access) == made
        monkeypatch.setenv("WHARF_PLATFORM", "linux/arm64")
        with pytest.raises(Unavailable):
            base.ensure(access)


def test_the_team_chooses_in_pyproject_by_digest_only(
    access: Access, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace(tmp_path)
    monkeypatch.setattr(base, "_copied", lambda _r, reference, _k, _m: base.Parent(reference.split("@")[0], "sha256:0"))
    (tmp_path / "pyproject.toml").write_text(
        f'[tool.modelwharf]\nbase-image = "registry.example/python@sha256:{"a" * 64}"\n'
    )
    assert base.ensure(access, workspace=workspace) == "wharf.local/registry.example/python@sha256:0"
    monkeypatch.setenv("WHARF_BASE_IMAGE", f"mine.example/python@sha256:{'b' * 64}")
    assert base.ensure(access, workspace=workspace) == "wharf.local/mine.example/python@sha256:0"
    monkeypatch.delenv("WHARF_BASE_IMAGE")
    (tmp_path / "pyproject.toml").write_text('[tool.modelwharf]\nbase-image = "registry.example/python:3.11"\n')
    with pytest.raises(Mistake, match=r"pyproject\.toml: tool\.modelwharf\.base-image: must name a digest"):
        base.ensure(access, workspace=workspace)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WHARF_BASE_IMAGE", "python", "WHARF_BASE_IMAGE: 'python' is no image"),
        ("WHARF_BASE_IMAGE", "docker.io/library/python", "is no image"),
        ("WHARF_PLATFORM", "windows/amd64", "WHARF_PLATFORM: 'windows/amd64' is not known"),
    ],
)
def test_settings_that_mean_nothing(
    access: Access, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(Mistake, match=said):
        base.ensure(access)


def test_no_program_of_the_image_makes_anybody_root(tmp_path: Path) -> None:
    """Runs the hook that is for it, on a folder that plays the image."""
    root = tmp_path / "an image"
    root.mkdir()
    modes = {"su": 0o4755, "ssh-agent": 0o2755, "both": 0o6711, "plain": 0o755}
    for name, mode in modes.items():
        (root / name).touch()
        (root / name).chmod(mode)
    (hook,) = (hook for hook in base._hooks("tools") if "-perm" in hook)
    subprocess.run(["sh", "-c", hook.replace("{root}", '"$1"'), "sh", str(root)], check=True)
    assert {name: (root / name).stat().st_mode & 0o7777 for name in modes} == {
        name: mode & 0o777 for name, mode in modes.items()
    }


def test_the_hooks_make_users_and_take_out_what_differs() -> None:
    hooks = "\n".join(base._hooks("tools"))
    for wanted in (
        "bentoml:x:1034",
        "argocd:x:999",
        "unchecked-hash",
        "resolv.conf",
        "sources.list",
        "/usr/bin/python",
    ):
        assert wanted in hooks
    assert "argocd" not in "\n".join(base._hooks("serving"))
