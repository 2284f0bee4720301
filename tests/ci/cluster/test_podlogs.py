"""`wharf logs` on a cluster."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from ci.cli import main
from ci.cluster import access, podlogs
from ci.cluster.access import Access
from ci.errors import Mistake
from ci.workspace import Workspace
from tests.ci.cluster.argo_objects import controllers, model_pod, pod
from tests.ci.cluster.kube_double import KubeDouble, close_clients


@pytest.fixture
def cluster(tmp_path: Path) -> Generator[KubeDouble]:
    with KubeDouble(tmp_path) as double:
        yield double


@pytest.fixture
def workspace(tmp_path: Path, cluster: KubeDouble, monkeypatch: pytest.MonkeyPatch) -> Generator[Workspace]:
    (tmp_path / "gitops").mkdir()
    (tmp_path / "models" / "tumor").mkdir(parents=True)
    (tmp_path / "models" / "tumor" / "model.yaml").touch()
    found = Workspace(tmp_path)
    access.save(found, Access("node", cluster.kubeconfig, "double", "wharf.local", "x", None))
    monkeypatch.chdir(tmp_path)
    yield found
    close_clients(found)


def test_the_end_of_every_pod_of_a_model_is_shown(
    workspace: Workspace, cluster: KubeDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.add(model_pod("tumor", "dev", 3, "a"), model_pod("tumor", "prod", 2, "b"), model_pod("digits", "dev", 1))
    cluster.logs = {
        ("team-dev", "tumor-a"): "1\n2\n3\n",
        ("team-prod", "tumor-b"): "4\n",
        ("team-dev", "digits-a"): "x\n",
    }
    assert main(["logs", "tumor", "-n", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == ["dev tumor-a | 2", "dev tumor-a | 3", "prod tumor-b | 4"]
    assert main(["logs", "tumor", "--env", "prod"]) == 0
    assert capsys.readouterr().out == "4\n"


def test_of_a_container_that_crashed_the_last_words_are_shown(
    workspace: Workspace, cluster: KubeDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.add(model_pod("tumor", "dev", 3, ready=False, waiting="CrashLoopBackOff", restarts=2))
    cluster.logs["team-dev", "tumor-a<"] = "cannot go on\n"
    main(["logs", "tumor"])
    assert capsys.readouterr().out == "cannot go on\n"


def test_a_container_that_never_started_says_why_there_is_nothing(
    workspace: Workspace, cluster: KubeDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.add(model_pod("tumor", "dev", 3, ready=False, waiting="ImagePullBackOff"))
    assert main(["logs", "tumor"]) == 0
    assert capsys.readouterr() == ("", "dev tumor-a: container in pod tumor-a is waiting to start\n")


def test_the_parts_of_the_platform(
    workspace: Workspace, cluster: KubeDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.add(*controllers(), pod("mlflow-0", "modelwharf", {"app.kubernetes.io/name": "mlflow"}))
    for name in ("application-controller", "repo-server", "redis", "applicationset-controller"):
        cluster.logs["argocd", f"argocd-{name}-0"] = f"I am {name}\n"
    cluster.logs["modelwharf", "mlflow-0"] = "ready\n"
    main(["logs", "mlflow"])
    assert capsys.readouterr().out == "ready\n"
    main(["logs", "argocd"])
    assert "argocd-repo-server-0 | I am repo-server" in capsys.readouterr().out.splitlines()


def test_names_without_pods(workspace: Workspace) -> None:
    with pytest.raises(Mistake, match=r"no model 'tumr' in models/ \(did you mean 'tumor'\?\)"):
        podlogs.show(workspace, "tumr", None, 5, False)
    with pytest.raises(Mistake, match="tumor has no pod in dev"):
        podlogs.show(workspace, "tumor", "dev", 5, False)
    with pytest.raises(Mistake, match="argocd belongs to no environment"):
        podlogs.show(workspace, "argocd", "dev", 5, False)


def test_following_shows_new_pods_and_starts_and_survives_a_restart_of_the_server(
    workspace: Workspace, cluster: KubeDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    done = threading.Event()

    class Enough(Exception):
        pass

    def keep(source: object, line: str, _many: bool) -> None:
        printed.append(line)
        if line == "second start":
            cluster.stop()
            cluster.start()
            cluster.add(model_pod("tumor", "dev", 4, "b"))
            cluster.logs["team-dev", "tumor-b"] = "new pod\n"
        if line == "first":
            cluster.add(model_pod("tumor", "dev", 3, restarts=1))
            cluster.logs["team-dev", "tumor-a"] = "second start\n"
        if line == "new pod":
            done.set()
            raise Enough

    monkeypatch.setattr(podlogs, "_print", keep)
    monkeypatch.setattr(podlogs, "_AGAIN_S", 0.05)
    cluster.add(model_pod("tumor", "dev", 3))
    cluster.logs["team-dev", "tumor-a"] = "first\n"
    with pytest.raises(Enough):
        podlogs.show(workspace, "tumor", None, 10, True)
    assert printed == ["first", "second start", "new pod"] and done.is_set()
