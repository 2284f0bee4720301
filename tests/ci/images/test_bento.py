"""The image of a bento: a new model is a small layer, and the same inputs give the same digest anywhere."""

from __future__ import annotations

import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ci.build import Bento, content_hash
from ci.cluster.access import Access
from ci.errors import Mistake
from ci.images import base, bento, dependencies, layers
from ci.images.layers import Entry
from ci.workspace import Workspace
from tests.ci.images.registry_server import RegistryServer, registry_server

COMMIT = "c" * 40


@pytest.fixture(autouse=True)
def small_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base and packages of one file each, in the place of a minute's work."""

    def build(_kind: object, _machine: object) -> layers.Layer:
        return layers.pack([Entry("/usr/bin/python", content=b"")])

    def install(requirements: str, python: str, architecture: str) -> layers.Layer:
        return layers.pack([Entry("/opt/wharf/site/a.py", content=f"{requirements}{python}{architecture}".encode())])

    monkeypatch.setattr(base, "build", build)
    monkeypatch.setattr(dependencies, "install", install)


def make(root: Path, *, model: str = "model 1", when: str = "2026-01-01", python: str = base.PYTHON) -> Bento:
    """Write a bento as `bentoml build` leaves it."""
    for name, text in {
        "src/bentos/__init__.py": "",
        "src/bentos/serve.py": "print('serving')\n",
        "src/bentos/tumor/service.py": "import bentos\n",
        "src/requirements.txt": "numpy==2.4.6\n",
        "src/bentofile.yaml": "service: x\n",
        "src/model/artifact.onnx": model,
        "src/model/serving.json": "{}",
        "apis/openapi.yaml": "a: 1\n",
        "env/docker/Dockerfile": "FROM x\n",
        "README.md": when,
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    digest = content_hash(root / "src")
    image = {"python_version": python, "python_requirements": "numpy==2.4.6\n"}
    description = {"name": "tumor", "version": digest[:16], "creation_time": when, "image": image}
    (root / "bento.yaml").write_text(yaml.safe_dump(description))
    return Bento(f"tumor:{digest[:16]}", digest, "local", root, built=True)


def provide(tmp_path: Path, access: Access, made: Bento) -> bento.BentoImage:
    return bento.provide(Workspace(tmp_path), access, made, "wharf.local", COMMIT)


def files(server: RegistryServer, reference: str) -> list[dict[str, tarfile.TarInfo]]:
    """Return the members of every layer."""
    repository, _, digest = reference.removeprefix("wharf.local/").partition("@")
    found: list[dict[str, tarfile.TarInfo]] = []
    for layer in server.manifest(repository, digest)["layers"]:
        path = layers.cache() / "layers" / f"{layer['digest'].partition(':')[2]}.tar.gz"
        with tarfile.open(path) as tar:
            found.append({info.name: info for info in tar if info.isfile()})
    return found


def test_layers_from_the_slow_to_the_quick(tmp_path: Path, access: Access, server: RegistryServer) -> None:
    made = make(tmp_path / "b")
    image = provide(tmp_path, access, made)
    name, _, digest = image.reference.partition("@")
    assert name == "wharf.local/tumor"
    home = "home/bentoml/bento"
    _, packages, code, model = files(server, image.reference)
    assert list(packages) == ["opt/wharf/site/a.py"]
    sources = {"bentos/__init__.py", "bentos/serve.py", "bentos/tumor/service.py", "requirements.txt", "bentofile.yaml"}
    assert {path for path in code if "__pycache__" not in path} == {f"{home}/src/{path}" for path in sources}
    compiled = {Path(path).name.partition(".")[0] for path in code if path.endswith(".pyc")}
    assert compiled == {"__init__", "serve", "service"}
    model_files = ("apis/openapi.yaml", "bento.yaml", "src/model/artifact.onnx", "src/model/serving.json")
    assert set(model) == {f"{home}/{path}" for path in model_files}
    settings = server.config("tumor", digest)["config"]
    assert settings["User"] == "1034:1034" and settings["WorkingDir"] == "/home/bentoml/bento"
    assert settings["Cmd"][:2] == ["python", "/home/bentoml/bento/src/bentos/serve.py"]
    assert {"PYTHONPATH=/opt/wharf/site", "BENTOML_HOME=/tmp/bentoml", "HOME=/tmp"} <= set(settings["Env"])
    assert settings["Labels"]["modelwharf.io/bento"] == made.tag
    assert settings["Labels"]["org.opencontainers.image.revision"] == COMMIT


def test_a_new_model_sends_its_layer_only(tmp_path: Path, access: Access, server: RegistryServer) -> None:
    first = provide(tmp_path, access, make(tmp_path / "one"))
    before = server.received
    second = provide(tmp_path, access, make(tmp_path / "two", model="model 2"))
    assert second.reference != first.reference and second.pushed == server.received - before < 4000
    old, new = (server.manifest("tumor", each.reference.partition("@")[2])["layers"] for each in (first, second))
    assert old[:3] == new[:3] and old[3] != new[3]
    assert provide(tmp_path, access, make(tmp_path / "two", model="model 2")) == replace(second, pushed=0, seconds=0.0)


def test_the_same_bento_gives_the_same_digest_on_another_machine(
    tmp_path: Path, access: Access, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = provide(tmp_path, access, make(tmp_path / "one"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other-cache"))
    with registry_server() as other:
        elsewhere = replace(access, push=other.place)
        two = provide(tmp_path, elsewhere, make(tmp_path / "elsewhere" / "two", when="2027-05-05"))
    assert one.reference == two.reference and two.pushed > 0


def test_the_commit_is_part_of_the_image(tmp_path: Path, access: Access) -> None:
    made = make(tmp_path / "one")
    named = provide(tmp_path, access, made)
    other = bento.provide(Workspace(tmp_path), access, made, "wharf.local", "d" * 40)
    assert named.reference != other.reference


def test_bentoml_reads_no_thousands_of_lines_at_each_start(
    tmp_path: Path, access: Access, server: RegistryServer
) -> None:
    image = provide(tmp_path, access, make(tmp_path / "one"))
    digest = server.manifest("tumor", image.reference.partition("@")[2])["layers"][-1]["digest"].partition(":")[2]
    with tarfile.open(layers.cache() / "layers" / f"{digest}.tar.gz") as tar:
        stream = tar.extractfile("home/bentoml/bento/bento.yaml")
        assert stream is not None
        description = yaml.safe_load(stream.read())
    assert description["image"] == {"python_version": base.PYTHON, "python_requirements": ""}
    assert description["creation_time"] == "1970-01-01T00:00:00Z" and description["name"] == "tumor"


def test_a_python_that_the_base_does_not_have_is_refused(tmp_path: Path, access: Access) -> None:
    with pytest.raises(Mistake, match=r"wants Python 3\.13, the base image has 3\.11") as caught:
        provide(tmp_path, access, make(tmp_path / "one", python="3.13"))
    assert "bentos/tumor/bentofile.yaml" in caught.value.tip


def test_what_is_no_bento_is_said(tmp_path: Path, access: Access) -> None:
    made = make(tmp_path / "one")
    (tmp_path / "one" / "bento.yaml").unlink()
    with pytest.raises(Mistake, match="is no bento"):
        provide(tmp_path, access, made)
