"""The images of the platform: Argo CD and the others on the node, MLflow, and the one of jobs."""

from __future__ import annotations

import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from ci.cluster.access import Access
from ci.errors import Mistake
from ci.images import base, dependencies, layers, mlflow, tools, trainer
from ci.images.layers import Entry
from ci.shell import git
from ci.workspace import Workspace
from tests.ci.images.registry_server import RegistryServer
from tests.conftest import make_workspace


@pytest.fixture(autouse=True)
def small_parents(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Bases and packages of one file each; returns the requirements that were asked for."""
    asked: list[str] = []

    def install(requirements: str, _python: str, _architecture: str) -> layers.Layer:
        asked.append(requirements)
        return layers.pack([Entry("/opt/wharf/site/a.py", content=requirements.encode())])

    monkeypatch.setattr(base, "build", lambda kind, _machine: layers.pack([Entry(f"/{kind}", content=b"")]))
    monkeypatch.setattr(dependencies, "install", install)
    return asked


def last_layer(server: RegistryServer, reference: str) -> dict[str, tarfile.TarInfo]:
    repository, _, digest = reference.removeprefix("wharf.local/").partition("@")
    name = server.manifest(repository, digest)["layers"][-1]["digest"].partition(":")[2]
    with tarfile.open(layers.cache() / "layers" / f"{name}.tar.gz") as tar:
        return {info.name: info for info in tar}


@dataclass
class Built:
    """In the place of the node's Go programs."""

    folder: Path

    def path(self, program: str) -> Path:
        return self.folder / program


def test_the_programs_of_the_node(access: Access, server: RegistryServer, tmp_path: Path) -> None:
    for name in ("argocd", "rollouts-controller", "coredns"):
        (tmp_path / name).write_text(name)
    made = tools.ensure(access, Built(tmp_path))  # pyright: ignore[reportArgumentType]
    assert sorted(made) == ["argocd", "coredns", "redis", "rollouts"]
    before = server.received
    assert tools.ensure(access, Built(tmp_path)) == made and server.received == before  # pyright: ignore
    argocd = last_layer(server, made["argocd"])
    assert argocd["usr/local/bin/argocd-repo-server"].linkname == "/usr/local/bin/argocd"
    assert argocd["usr/local/bin/argocd"].mode == argocd["usr/local/bin/gpg-wrapper.sh"].mode == 0o755
    keys = argocd["app/config/gpg/keys"]
    assert (keys.mode, keys.uid) == (0o700, 999)
    settings = server.config("wharf-argocd", made["argocd"].partition("@")[2])["config"]
    assert settings["Entrypoint"] == ["/usr/bin/tini", "--"] and settings["User"] == "999"
    coredns = server.manifest("wharf-coredns", made["coredns"].partition("@")[2])
    assert len(coredns["layers"]) == 1  # nothing but the program
    assert server.config("wharf-coredns", made["coredns"].partition("@")[2])["config"]["Entrypoint"] == ["/coredns"]
    (tmp_path / "argocd").write_text("a newer one")
    assert tools.ensure(access, Built(tmp_path))["argocd"] != made["argocd"]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("code", "said"), [(0, "Good"), (1, "not trusted"), (128, "broken")])
def test_gpg_and_git_answer_for_argo_cd(tmp_path: Path, code: int, said: str) -> None:
    for name, script in {"gpg": tools._GPG, "git": tools._GIT_VERIFY}.items():
        fake = '[ "$1" = describe ] && exit 1\n' if name == "git" else ""
        (tmp_path / name).write_text(f"#!/bin/sh\n{fake}echo '{said}' >&2\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
        (tmp_path / "wrapper.sh").write_text(script)
        command = ["sh", str(tmp_path / "wrapper.sh"), "HEAD"]
        done = subprocess.run(
            command, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, capture_output=True, text=True, check=False
        )
        # A signature that is missing or not trusted is an answer; anything else is a failure.
        expected = (0, f"{said}\n", "") if code < 2 else (code, "", f"{said}\n")
        assert (done.returncode, done.stdout, done.stderr) == expected


def test_mlflow_has_the_locked_server_and_its_clients(
    access: Access, server: RegistryServer, workspace: Workspace, small_parents: list[str]
) -> None:
    made = mlflow.ensure(workspace, access)
    assert mlflow.ensure(workspace, access) == made
    names = {line.partition("==")[0] for line in small_parents[0].splitlines() if "==" in line}
    assert {"mlflow", "psycopg2-binary", "boto3"} <= names and not {"bentoml", "wandb", "pytest"} & names
    assert last_layer(server, made)["usr/local/bin/mlflow"].mode == 0o755


def test_jobs_run_the_commit_at_head(
    access: Access, server: RegistryServer, tmp_path: Path, small_parents: list[str]
) -> None:
    workspace = make_workspace(tmp_path / "repository")
    head = git(workspace.root, "rev-parse", "HEAD")
    (workspace.root / "models" / "not-committed.py").write_text("")
    made = trainer.ensure(workspace, access)
    found = last_layer(server, made)
    checkout = trainer.CHECKOUT.lstrip("/")
    assert f"{checkout}/models/tumor/train.py" in found and f"{checkout}/models/not-committed.py" not in found
    assert found[f"{checkout}/.wharf"].isdir() and found[checkout].uid == found[f"{checkout}/.wharf"].uid == 1034
    settings = server.config("wharf-trainer", made.partition("@")[2])["config"]
    assert settings["Labels"]["org.opencontainers.image.revision"] == head
    assert settings["WorkingDir"] == trainer.CHECKOUT and settings["Entrypoint"] == ["wharf"]
    names = {line.partition("==")[0] for line in small_parents[0].splitlines() if "==" in line}
    assert {"mlflow", "scikit-learn", "bentoml"} <= names and not {"pytest", "pulumi"} & names
    count = len(small_parents)
    git(workspace.root, "commit", "--quiet", "--allow-empty", "--message=Another commit")
    assert trainer.ensure(workspace, access) != made and len(small_parents) == count + 1


def test_the_checkout_is_clean_whole_and_always_the_same(tmp_path: Path) -> None:
    workspace = make_workspace(tmp_path / "repository")
    head = git(workspace.root, "rev-parse", "HEAD")
    one, two = (
        layers.pack(trainer.checkout(workspace.root, head, tmp_path / name / "repo"))
        for name in ("one", "two")
        if (tmp_path / name).mkdir() is None
    )
    assert one == two
    with tarfile.open(one.path) as tar:
        tar.extractall(tmp_path / "image", filter="data")
    there = tmp_path / "image" / trainer.CHECKOUT.lstrip("/")
    assert git(there, "rev-parse", "HEAD") == head
    assert git(there, "status", "--porcelain", "--untracked-files=all") == ""
    assert str(tmp_path) not in (there / ".git" / "config").read_text()


def test_without_a_commit_there_is_no_image_of_jobs(access: Access, tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    with pytest.raises(Mistake, match="has no git commit"):
        trainer.ensure(Workspace(tmp_path), access)
