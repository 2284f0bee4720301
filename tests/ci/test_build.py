"""The bento: same content, same tag; only what serving needs inside; never half a bento."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ci import build
from ci.cli import main
from ci.cluster import access
from ci.errors import Mistake, Refusal, Unavailable
from ci.images.bento import BentoImage
from ci.images.registry import MANIFEST
from ci.requirements import BY_FORMAT, SERVING, export
from ci.shell import CommandFailed, git
from ci.workspace import Workspace
from tests.bentos import artifacts
from tests.ci.images.registry_server import registry_server
from tests.mlflow_server import ROOT
from tests.registry_double import RegistryDouble, registry_double


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifacts.table_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Generator[RegistryDouble]:
    with registry_double() as double:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", double.url)
        yield double


def add_version(registry: RegistryDouble, model: Path, number: int = 1) -> None:
    """Register the model folder as version `number` of tumor, not built yet."""
    sha256 = json.loads((model / "serving.json").read_text())["sha256"]
    facts = registry.add("tumor", number, artifact=sha256, bento="", image="")
    for file in model.iterdir():
        registry.artifacts[f"{facts.run}/model/{file.name}"] = file.read_bytes()


def package(workspace: Workspace, model: Path) -> build.Bento:
    with build.store_lock(workspace) as scratch:
        return build.package(workspace, "tumor", model, scratch)


def leftovers(workspace: Workspace) -> list[str]:
    return [path.name for path in workspace.bento_store.glob("building-*")]


# --- requirements ---


def names(text: str) -> list[str]:
    return [line.split("==")[0] for line in text.splitlines() if "==" in line]


def test_requirements_are_pinned_hashed_and_only_what_serving_needs() -> None:
    text = export(ROOT / "uv.lock", [*SERVING, *BY_FORMAT["onnx"]], "3.11")
    assert {"bentoml", "numpy", "onnxruntime", "orjson", "uvloop", "httptools", "starlette"} <= set(names(text))
    assert not {"mlflow", "pandas", "scikit-learn", "scipy", "wandb", "matplotlib", "onnx"} & set(names(text))
    blocks = text.replace(" \\\n", " ").splitlines()
    assert all("--hash=sha256:" in block for block in blocks) and len(blocks) == len(set(names(text)))
    assert "scikit-learn" in names(export(ROOT / "uv.lock", [*SERVING, *BY_FORMAT["skops"]], "3.11"))


LOCK = """
[[package]]
name = "project"
source = { editable = "." }
dependencies = [
    { name = "a", extra = ["fast"] },
    { name = "n", version = "1", source = {}, marker = "python_full_version < '3.12'" },
    { name = "n", version = "2", source = {}, marker = "python_full_version >= '3.12'" },
]
[[package]]
name = "a"
version = "1.5"
source = { registry = "x" }
dependencies = [{ name = "w", marker = "sys_platform == 'win32'" }, { name = "b" }]
sdist = { url = "u", hash = "sha256:02" }
wheels = [{ url = "u", hash = "sha256:01" }]
[package.optional-dependencies]
fast = [{ name = "c" }]
slow = [{ name = "w" }]
""" + "".join(
    f'[[package]]\nname = "{name}"\nversion = "{version}"\nsource = {{ registry = "x" }}\n'
    for name, version in [("b", "1"), ("c", "1"), ("w", "1"), ("n", "1"), ("n", "2")]
)


@pytest.mark.parametrize(("python", "n"), [("3.11", "n==1"), ("3.12", "n==2")])
def test_requirements_follow_markers_extras_and_versions(tmp_path: Path, python: str, n: str) -> None:
    (tmp_path / "uv.lock").write_text(LOCK)
    text = export(tmp_path / "uv.lock", ["a", "n"], python)
    assert text == f"a==1.5 \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\nb==1\nc==1\n{n}\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [("not toml", "uv.lock: cannot be read"), (LOCK, "uv.lock: 'zzz' is not a dependency of the project")],
)
def test_a_lock_that_does_not_help_is_named(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "uv.lock").write_text(content)
    with pytest.raises(Mistake, match=said):
        export(tmp_path / "uv.lock", ["zzz"], "3.11")


# --- without building ---


def test_an_image_that_the_store_does_not_have_is_not_found(workspace: Workspace) -> None:
    assert build.find(workspace, f"wharf.local/tumor@sha256:{'0' * 64}") is None
    assert build.find(workspace, "wharf.local/tumor:latest") is None
    assert build.find(workspace, f"wharf.local/../tumor@sha256:{'0' * 63}") is None


def test_a_folder_without_its_description_is_no_bento(workspace: Workspace) -> None:
    half = workspace.bento_store / "bentos" / "tumor" / ("0" * 16)
    (half / "src").mkdir(parents=True)
    assert build.find(workspace, f"wharf.local/tumor@sha256:{'0' * 64}") is None


@pytest.mark.parametrize("missing", ["service.py", "bentofile.yaml"])
def test_a_model_without_a_service_is_named(workspace: Workspace, model: Path, missing: str) -> None:
    (workspace.bentos / "tumor" / missing).unlink()
    with pytest.raises(Mistake, match=f"bentos/tumor/{missing}: is missing"):
        package(workspace, model)
    assert not leftovers(workspace)


def test_the_python_version_must_be_pinned(workspace: Workspace, model: Path) -> None:
    path = workspace.bentos / "tumor" / "bentofile.yaml"
    path.write_text(path.read_text().replace('"3.11"', "3.11"))
    with pytest.raises(Mistake, match=r'docker\.python_version: must be text such as "3.11", not 3.11'):
        package(workspace, model)
    path.write_text("service: x\n")
    with pytest.raises(Mistake, match=r"docker\.python_version: is missing"):
        package(workspace, model)


def test_an_artifact_that_is_not_the_registered_one_is_refused(
    workspace: Workspace, registry: RegistryDouble, model: Path
) -> None:
    add_version(registry, model)
    path = next(key for key in registry.artifacts if key.endswith("artifact.onnx"))
    registry.artifacts[path] = registry.artifacts[path][:-1] + b"x"
    with pytest.raises(Refusal, match=r"model/artifact.onnx of run .*: sha256 is .*, the registry says"):
        build.build(workspace, "tumor")
    assert not leftovers(workspace)


def test_no_version_and_a_broken_registry_are_said_in_a_line(workspace: Workspace, registry: RegistryDouble) -> None:
    with pytest.raises(Mistake, match="model 'tumor' has no version to build"):
        build.build(workspace, "tumor")
    with pytest.raises(Mistake, match="model 'tumor' has no version 7"):
        build.build(workspace, "tumor", 7)
    registry.status = 500
    with pytest.raises(Unavailable):
        build.build(workspace, "tumor", 7)


@pytest.mark.parametrize("path", ["bentos/serving.py", "bentos/tumor/service.py", "bentos/extra.py", "uv.lock"])
def test_code_that_is_in_no_commit_is_not_built(
    workspace: Workspace, registry: RegistryDouble, model: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    add_version(registry, model)
    (workspace.models / "tumor" / "notes.txt").write_text("goes into no bento\n")
    for folder in (workspace.bentos, workspace.bentos / "tumor"):  # as it is after an import
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "serving.cpython-311.pyc").write_bytes(b"")
    monkeypatch.setattr(build, "package", lambda *_: build.Bento("tumor:0", "0", "i", workspace.root, built=False))
    assert build.build(workspace, "tumor").tag == "tumor:0"
    file = workspace.root / path
    file.write_text(f"{file.read_text() if file.exists() else ''}# changed\n")
    with pytest.raises(Mistake, match=f"{path}: is not committed") as caught:
        build.build(workspace, "tumor")
    assert "commit first" in caught.value.tip
    git(workspace.root, "add", path)  # in the index is in no commit either
    with pytest.raises(Mistake, match=f"{path}: is not committed"):
        build.build(workspace, "tumor")
    git(workspace.root, "commit", "--quiet", "--message=Change")
    assert build.build(workspace, "tumor").tag == "tumor:0"


def test_a_service_that_bentoml_cannot_import_is_one_line(
    workspace: Workspace, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(command: list[str], **_: object) -> str:
        raise CommandFailed(command, 1, "Traceback (most recent call last):\n  File x\nSyntaxError: invalid syntax\n\n")

    monkeypatch.setattr(build, "run", fail)
    with pytest.raises(Mistake) as caught:
        package(workspace, model)
    assert caught.value.lines == ["bentos/tumor/: bentoml cannot build it: SyntaxError: invalid syntax"]
    assert not leftovers(workspace)


def test_a_build_that_takes_too_long_can_be_tried_again(
    workspace: Workspace, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang(command: list[str], *, timeout: float, **_: object) -> str:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(build, "run", hang)
    with pytest.raises(Unavailable, match="bentoml did not build the bento of 'tumor' within 300 seconds"):
        package(workspace, model)
    assert not leftovers(workspace)


# --- the cluster target ---


def test_on_a_cluster_the_version_names_the_image_that_was_pushed(
    workspace: Workspace,
    registry: RegistryDouble,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_version(registry, model)
    made = build.Bento("tumor:" + "b" * 16, "b" * 64, "wharf.local/tumor@sha256:" + "b" * 64, tmp_path, built=True)
    monkeypatch.setattr(build, "package", lambda *_: made)
    asked: list[tuple[object, ...]] = []

    def provide(_: Workspace, *words: object) -> BentoImage:
        asked.append(words)
        return BentoImage("wharf.local/tumor@sha256:" + "a" * 64, pushed=5080, seconds=0.12)

    monkeypatch.setattr("ci.images.bento.provide", provide)
    cluster = access.Access("node", tmp_path / "kubeconfig", "here", "wharf.local", "127.0.0.1:5050", None)
    access.save(workspace, cluster)
    monkeypatch.chdir(workspace.root)
    assert main(["build", "tumor", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["image"], shown["pushed"], shown["push_s"]) == ("wharf.local/tumor@sha256:" + "a" * 64, 5080, 0.12)
    assert registry.versions["tumor", 1]["wharf.image"] == "wharf.local/tumor@sha256:" + "a" * 64
    commit = registry.versions["tumor", 1]["wharf.commit"]
    assert asked == [(cluster, made, "wharf.local", commit)]  # the registry that the first environment names
    assert main(["build", "tumor"]) == 0
    assert capsys.readouterr().out == f"{made.tag}  wharf.local/tumor@sha256:{'a' * 64}\n"


def test_whether_an_image_exists_is_asked_of_the_clusters_registry(workspace: Workspace, tmp_path: Path) -> None:
    with registry_server() as server:
        config = {**server.add("tumor", b"{}"), "mediaType": "x"}
        digest = server.add_manifest("tumor", "t", {"mediaType": MANIFEST, "config": config, "layers": []})
        assert not build.exists(workspace, f"wharf.local/tumor@{digest}")  # the local target has a store
        access.save(workspace, access.Access("node", tmp_path / "k", "here", "wharf.local", server.place, None))
        assert build.exists(workspace, f"wharf.local/tumor@{digest}")
        assert not build.exists(workspace, f"wharf.local/tumor@sha256:{'0' * 64}")
        assert not build.exists(workspace, f"wharf.local/digits@{digest}")
        assert not build.exists(workspace, "wharf.local/tumor:latest")
        server.fail = 500
        with pytest.raises(Unavailable, match="500"):
            build.exists(workspace, f"wharf.local/tumor@{digest}")


# --- real builds ---


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_build_is_repeatable_noted_in_the_registry_and_checked(
    workspace: Workspace,
    registry: RegistryDouble,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add_version(registry, model)
    made = build.build(workspace, "tumor")
    assert made.built and made.tag == f"tumor:{made.digest[:16]}" and len(made.digest) == 64
    assert made.image == f"wharf.local/tumor@sha256:{made.digest}"
    tags = registry.versions["tumor", 1]
    assert (tags["wharf.bento"], tags["wharf.image"]) == (made.tag, made.image)
    assert build.find(workspace, made.image) == made.path

    # The whole content: nothing of the checkout slipped in.
    code = {f"bentos/{path.name}" for path in (ROOT / "bentos").glob("*.py")}
    own = {"bentos/tumor/service.py", "bentos/tumor/bentofile.yaml", "requirements.txt", "bentofile.yaml"}
    inside = {
        path.relative_to(made.path / "src").as_posix() for path in (made.path / "src").rglob("*") if path.is_file()
    }
    assert inside == code | own | {"model/serving.json", "model/artifact.onnx"}
    locked = (made.path / "src" / "requirements.txt").read_text()
    assert (made.path / "env" / "python" / "requirements.txt").read_text() == locked
    assert "python:3.11" in (made.path / "env" / "docker" / "Dockerfile").read_text()

    # Again, also as version 2 with the same content, also by the command: the same bento, not built again.
    add_version(registry, model, 2)
    assert build.build(workspace, "tumor") == build.Bento(made.tag, made.digest, made.image, made.path, built=False)
    assert registry.versions["tumor", 2]["wharf.bento"] == made.tag
    monkeypatch.chdir(workspace.root)
    assert main(["build", "tumor", "--version", "1", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["built"] is False and "already there" in shown.err

    # One byte differs: it is found no more, and built anew.
    artifact = made.path / "src" / "model" / "artifact.onnx"
    artifact.write_bytes(artifact.read_bytes()[:-1] + b"x")
    assert build.find(workspace, made.image) is None
    again = build.build(workspace, "tumor", 1)
    assert again.built and again.digest == made.digest and build.find(workspace, made.image) == made.path

    # Other code is another bento beside it.
    service = workspace.bentos / "tumor" / "service.py"
    service.write_text(service.read_text() + "# changed\n")
    git(workspace.root, "commit", "--quiet", "--all", "--message=Another service")
    other = build.build(workspace, "tumor", 1)
    assert other.built and other.tag != made.tag and build.find(workspace, made.image) == made.path
    assert not leftovers(workspace)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_builds_at_once_are_one(workspace: Workspace, model: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        made = list(pool.map(lambda _: package(workspace, model), range(2)))
    assert made[0].digest == made[1].digest and sorted(bento.built for bento in made) == [False, True]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_build_leaves_no_bento_and_the_next_one_is_whole(workspace: Workspace, model: Path) -> None:
    code = (
        "from pathlib import Path; from ci import build; from ci.workspace import Workspace\n"
        f"ws = Workspace(Path({str(workspace.root)!r}))\n"
        f"with build.store_lock(ws) as s: build.package(ws, 'tumor', Path({str(model)!r}), s)"
    )
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True)
    try:
        while not list(workspace.bento_store.glob("building-*/home")):
            assert child.poll() is None, "the build ended before it could be killed"
            time.sleep(0.005)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert leftovers(workspace) and not (workspace.bento_store / "bentos").exists()
    made = package(workspace, model)
    assert made.built and build.find(workspace, made.image) == made.path and not leftovers(workspace)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_bentofile_that_leaves_something_out_is_refused(workspace: Workspace, model: Path) -> None:
    path = workspace.bentos / "tumor" / "bentofile.yaml"
    path.write_text(path.read_text().replace("  - /model/serving.json\n", ""))
    with pytest.raises(Mistake, match="the bento does not hold what was put together for it"):
        package(workspace, model)
    assert not leftovers(workspace) and not (workspace.bento_store / "bentos").exists()
