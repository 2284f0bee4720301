"""The provider `kind` against doubles of `kind` and `docker`: no engine runs where these tests run.

The doubles are shell scripts that keep what exists in a folder and write down each command.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from ci.cluster import kind
from ci.cluster.kind import Kind
from ci.errors import Mistake, Unavailable
from ci.workspace import Workspace

DOCKER = """#!/bin/sh
echo "docker $*" >> "$DOUBLE/said"
case "$1" in
  info) test ! -e "$DOUBLE/no-engine" ;;
  ps) ls "$DOUBLE/containers" ;;
  run) touch "$DOUBLE/containers/modelwharf-registry" ;;
  rm) rm -f "$DOUBLE/containers/modelwharf-registry" ;;
  inspect) case "$*" in *Networks*) cat "$DOUBLE/networks" 2>/dev/null || true ;; *) cat "$DOUBLE/origin" ;; esac ;;
  network) echo kind >> "$DOUBLE/networks" ;;
  exec) if [ "$2" = --interactive ]; then cat > "$DOUBLE/hosts.toml"; fi ;;
esac
"""
KIND = """#!/bin/sh
echo "kind $*" >> "$DOUBLE/said"
case "$1 $2" in
  "version "*) cat "$DOUBLE/version" ;;
  "get clusters") cat "$DOUBLE/clusters" 2>/dev/null || true ;;
  "get nodes") echo modelwharf-control-plane ;;
  "create cluster") test ! -e "$DOUBLE/fails" || { echo "ERROR: failed to create cluster: no space" >&2; exit 1; }
     sed -n 's/.*hostPath: //p' "$4" > "$DOUBLE/origin"; echo modelwharf > "$DOUBLE/clusters"; echo "{}" > "$6" ;;
  "export kubeconfig") echo "{}" > "$6" ;;
  "delete cluster") test ! -e "$DOUBLE/fails" || { echo "ERROR: failed to delete: busy" >&2; exit 1; }
     rm -f "$DOUBLE/clusters" ;;
esac
"""


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "double"
    (folder / "containers").mkdir(parents=True)
    (folder / "version").write_text("kind v0.33.0 go1.26.1 linux/amd64\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, text in (("docker", DOCKER), ("kind", KIND)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setenv("DOUBLE", str(folder))
    return folder


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "checkout")


def said(double: Path, word: str) -> list[str]:
    return [line for line in (double / "said").read_text().splitlines() if word in line]


def test_it_needs_kind_and_an_engine(double: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Kind().missing() is None
    (double / "version").write_text("kind v0.26.0 go1.23.4 linux/amd64\n")
    assert Kind().missing() == "kind is older than 0.27"
    (double / "version").write_text("kind v0.33.0\n")
    (double / "no-engine").touch()
    assert Kind().missing() == "no Docker or Podman engine answers"
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    assert Kind().missing() == "the program kind is not installed"


def test_up_makes_a_registry_and_a_cluster_that_knows_it(double: Path, workspace: Workspace) -> None:
    found = Kind().up(workspace)
    assert (found.provider, found.context) == ("kind", "kind-modelwharf")
    assert (found.registry, found.push) == ("wharf.local", "127.0.0.1:5050")
    assert found.kubeconfig.is_file()
    assert found.origin == "/srv/modelwharf/origin.git"
    assert (double / "origin").read_text().strip() == str(workspace.state / "origin.git")
    assert said(double, "docker run")[0].split()[-1].startswith("docker.io/library/registry:3.0.0@sha256:")
    assert "--publish 127.0.0.1:5050:5000" in said(double, "docker run")[0]
    assert 'server = "http://modelwharf-registry:5000"' in (double / "hosts.toml").read_text()
    assert said(double, "network connect") == ["docker network connect kind modelwharf-registry"]


def test_up_again_makes_nothing_twice(double: Path, workspace: Workspace) -> None:
    Kind().up(workspace)
    Kind().up(workspace)
    assert len(said(double, "kind create cluster")) == 1
    assert len(said(double, "docker run")) == 1
    assert len(said(double, "network connect")) == 1


def test_a_cluster_of_another_checkout_is_refused(double: Path, workspace: Workspace, tmp_path: Path) -> None:
    Kind().up(workspace)
    with pytest.raises(Mistake, match=r"follows .*checkout/.wharf/origin.git, another checkout"):
        Kind().up(Workspace(tmp_path / "other"))


def test_down_leaves_a_cluster_of_another_checkout_alone_while_that_exists(
    double: Path, workspace: Workspace, tmp_path: Path
) -> None:
    Kind().up(workspace)
    other = Workspace(tmp_path / "other")
    with pytest.raises(Mistake, match=r"follows .*checkout/.wharf/origin.git, another checkout$"):
        Kind().down(other)
    assert said(double, "kind delete") == said(double, "docker rm") == []
    shutil.rmtree(workspace.state)
    with pytest.raises(Mistake, match="which is gone") as raised:
        Kind().up(other)
    assert raised.value.tip == "`make cluster-down` here removes it"
    assert Kind().down(other) == ["the kind cluster", "its registry"]


def test_what_kind_says_when_it_fails_is_one_line(double: Path, workspace: Workspace) -> None:
    (double / "fails").touch()
    with pytest.raises(Unavailable, match=r"^kind: ERROR: failed to create cluster: no space$"):
        Kind().up(workspace)


def test_down_removes_both_and_nothing_else(double: Path, workspace: Workspace) -> None:
    Kind().up(workspace)
    assert Kind().down(workspace) == ["the kind cluster", "its registry"]
    kubeconfig = workspace.state / "cluster" / "kubeconfig"
    # With a kubeconfig of its own, or kind would write to the user's.
    assert said(double, "kind delete") == [f"kind delete cluster --name modelwharf --kubeconfig {kubeconfig}"]
    assert not kubeconfig.exists()
    assert said(double, "docker rm") == ["docker rm --force --volumes modelwharf-registry"]
    assert Kind().down(workspace) == []


def test_what_kind_says_when_it_cannot_delete_is_one_line(double: Path, workspace: Workspace) -> None:
    Kind().up(workspace)
    (double / "fails").touch()
    with pytest.raises(Unavailable, match=r"^kind: ERROR: failed to delete: busy$"):
        Kind().down(workspace)


def test_the_nodes_see_the_origin_read_only(tmp_path: Path) -> None:
    (node,) = yaml.safe_load(kind.configuration(tmp_path))["nodes"]
    (mount,) = node["extraMounts"]
    assert mount == {"hostPath": str(tmp_path), "containerPath": "/srv/modelwharf/origin.git", "readOnly": True}
