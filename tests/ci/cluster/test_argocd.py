"""`wharf status` on a cluster: what it makes of git, Argo CD's words and the pods (objects as a real cluster has them).

That a real cluster has them so is tested in tests/cluster.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from ci.cli import main
from ci.cluster import access, argocd, night
from ci.cluster.access import Access
from ci.cluster.argocd import ClusterApplication
from ci.errors import Unavailable
from ci.local.platform import wait_healthy
from ci.shell import git
from ci.status import agent_fault, revision
from ci.workspace import Workspace
from tests.ci.cluster.argo_objects import (
    DIGEST,
    application,
    application_set,
    controllers,
    deployment,
    labels,
    model_pod,
    service,
)
from tests.ci.cluster.kube_double import KubeDouble, close_clients

WANTED = 3


@pytest.fixture
def cluster(tmp_path: Path) -> Generator[KubeDouble]:
    with KubeDouble(tmp_path) as double:
        double.add(*controllers(), *(application_set(name) for name in ("dev", "staging", "prod")))
        yield double


@pytest.fixture
def workspace(tmp_path: Path, cluster: KubeDouble, monkeypatch: pytest.MonkeyPatch) -> Generator[Workspace]:
    """A repository that pins version 3 of `tumor` in dev, on the cluster."""
    root = tmp_path / "repository"
    (root / "models" / "tumor").mkdir(parents=True)
    (root / "models" / "tumor" / "model.yaml").touch()
    shutil.copytree(Path(__file__).parents[3] / "gitops" / "environments", root / "gitops" / "environments")
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "config", "user.name", "Tests")
    git(root, "config", "user.email", "tests@localhost")
    found = Workspace(root)
    release(found, "tumor", "dev", WANTED)
    access.save(found, Access("node", cluster.kubeconfig, "double", "wharf.local", "127.0.0.1:5050", "/origin.git"))
    monkeypatch.chdir(root)
    yield found
    close_clients(found)


def release(workspace: Workspace, model: str, environment: str, version: int) -> str:
    """Commit a release and its rendering as far as the status reads them; return the commit."""
    for path, text in (
        (f"gitops/releases/{environment}/{model}.yaml", f"model: {model}\nversion: {version}\n"),
        (f"gitops/rendered/{environment}/{model}/deployment.yaml", f"version: {version}\n"),
    ):
        (workspace.root / path).parent.mkdir(parents=True, exist_ok=True)
        (workspace.root / path).write_text(text)
    git(workspace.root, "add", "gitops")
    git(workspace.root, "commit", "--quiet", f"--message=Release {model} {version}")
    return head(workspace)


def head(workspace: Workspace) -> str:
    return git(workspace.root, "rev-parse", "HEAD")


def only(workspace: Workspace) -> ClusterApplication:
    (found,) = argocd.applications(workspace)
    assert isinstance(found, ClusterApplication)
    return found


def at(workspace: Workspace, **more: Any) -> dict[str, Any]:
    return application("tumor", "dev", revision=head(workspace), **more)


def test_what_is_well_has_version_address_pods_and_no_message(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.add(at(workspace), model_pod("tumor", "dev", 3, restarts=2), service("tumor", "dev"))
    cluster.add(deployment("tumor", "dev", 3))
    found = only(workspace)
    assert found.well and (found.version, found.desired, found.message) == (3, 3, "")
    assert (found.url, found.target, found.revision) == ("http://10.96.7.7", "cluster", head(workspace))
    (pod,) = found.pods
    assert (pod.name, pod.ready, pod.restarts, pod.node, pod.version) == ("tumor-a", True, 2, "node-1", 3)
    assert (pod.image, found.restarts, found.namespace) == (DIGEST, 2, "team-dev")


def test_away_from_the_node_the_address_is_the_name_inside(workspace: Workspace, cluster: KubeDouble) -> None:
    access.save(workspace, Access("existing", cluster.kubeconfig, "double", "r", "r", None))
    cluster.add(at(workspace), service("tumor", "dev"))
    assert only(workspace).url == "http://tumor.team-dev.svc"


def test_the_version_is_that_of_the_pods_that_are_ready(workspace: Workspace, cluster: KubeDouble) -> None:
    crash = {"exitCode": 1, "reason": "Error"}
    cluster.add(
        at(workspace, health="Degraded"),
        model_pod("tumor", "dev", 2, "old"),
        model_pod("tumor", "dev", 3, "new", ready=False, waiting="CrashLoopBackOff", last=crash, restarts=4),
    )
    cluster.logs["team-dev", "tumor-new"] = "starting\nERROR the artifact's sha256 is not that of the release\n"
    found = only(workspace)
    assert (found.version, found.desired, found.health) == (2, 3, "Degraded")
    assert found.message == (
        "ends with code 1, restarted 4 times: ERROR the artifact's sha256 is not that of the release; "
        "version 2 goes on serving"
    )


def test_of_a_container_that_is_gone_the_log_before_is_read(workspace: Workspace, cluster: KubeDouble) -> None:
    crash = {"exitCode": 1, "reason": "Error"}
    cluster.add(
        at(workspace, health="Degraded"),
        model_pod("tumor", "dev", 3, ready=False, waiting="CrashLoopBackOff", last=crash, restarts=1),
    )
    cluster.logs["team-dev", "tumor-a<"] = "last words\n"
    found = only(workspace)
    assert (found.version, found.message) == (None, "ends with code 1, restarted 1 time: last words")


PULL = (
    'Back-off pulling image "wharf.local/tumor@sha256:00": ErrImagePull: rpc error: code = NotFound desc = '
    'failed to pull and unpack image "wharf.local/tumor@sha256:00": failed to resolve reference '
    '"wharf.local/tumor@sha256:00": wharf.local/tumor@sha256:00: not found'
)


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        (
            {"waiting": "ImagePullBackOff", "message": PULL},
            "its image wharf.local/tumor@sha256:00 cannot be pulled: not found",
        ),
        (
            {"waiting": "CrashLoopBackOff", "restarts": 1, "last": {"exitCode": 137, "reason": "OOMKilled"}}
            | {"spec": {"containers": [{"name": "model", "resources": {"limits": {"memory": "1Gi"}}}]}},
            "was killed for using more memory than its limit of 1Gi",
        ),
        (
            {
                "waiting": "CreateContainerConfigError",
                "message": "container has runAsNonRoot and image will run as root",
            },
            "CreateContainerConfigError: container has runAsNonRoot and image will run as root",
        ),
        (
            {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/1 nodes"}]},
            "no node takes it: 0/1 nodes",
        ),
    ],
)
def test_the_reason_of_a_pod_that_does_not_start(
    workspace: Workspace, cluster: KubeDouble, pod: dict[str, Any], reason: str
) -> None:
    cluster.add(at(workspace, health="Degraded"), model_pod("tumor", "dev", 3, ready=False, **pod))
    found = only(workspace)
    assert found.message == reason and found.pods[0].reason == reason and not found.pods[0].ready


def test_an_event_says_more_where_the_pod_itself_does_not(workspace: Workspace, cluster: KubeDouble) -> None:
    def event(name: str, pod: str, reason: str, message: str) -> dict[str, Any]:
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": "team-dev"},
            "involvedObject": {"name": pod},
            "type": "Warning",
            "reason": reason,
            "message": message,
            "lastTimestamp": "2026-11-21T10:00:00Z",
        }

    cluster.add(
        at(workspace, health="Progressing"),
        model_pod("tumor", "dev", 3, ready=False, waiting="ContainerCreating"),
        event("1", "tumor-a", "FailedMount", "no such volume"),
        event("2", "tumor-a", "Unhealthy", "Startup probe failed"),
    )
    assert only(workspace).message == "no such volume"
    cluster.add(model_pod("tumor", "dev", 3, ready=False, waiting="ImagePullBackOff", message="not found"))
    assert only(workspace).message.endswith("cannot be pulled: not found")
    unready = model_pod("tumor", "dev", 3, ready=False)
    unready["status"]["containerStatuses"][0]["started"] = True
    cluster.add(unready, event("2", "tumor-a", "Unhealthy", "Readiness probe failed: 503"))
    del cluster.objects["/api/v1/events", "team-dev", "1"]
    assert only(workspace).message == "runs, but does not pass its readiness check: Readiness probe failed: 503"


def test_pods_of_the_same_version_that_go_on_serving_are_named(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.add(
        at(workspace, health="Degraded"),
        model_pod("tumor", "dev", 3, "old"),
        model_pod("tumor", "dev", 3, "new", ready=False, waiting="ImagePullBackOff", message="not found"),
    )
    assert only(workspace).message.endswith("cannot be pulled: not found; version 3 goes on serving")


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        (
            [{"type": "ReplicaFailure", "status": "True", "message": 'pods "t" is forbidden: exceeded quota: team'}],
            'its pods are refused: pods "t" is forbidden: exceeded quota: team',
        ),
        (
            [{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}],
            "did not become ready within 240 seconds",
        ),
    ],
)
def test_the_reason_of_a_deployment(
    workspace: Workspace, cluster: KubeDouble, conditions: list[dict[str, str]], reason: str
) -> None:
    cluster.add(at(workspace, health="Degraded"), deployment("tumor", "dev", 3, conditions=conditions))
    assert only(workspace).message == reason


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            {"conditions": [{"type": "ComparisonError", "message": "rpc error: code = Unknown desc = bad YAML"}]},
            "ComparisonError: bad YAML",
        ),
        (
            {
                "operationState": {
                    "phase": "Failed",
                    "message": "one or more objects failed to apply",
                    "syncResult": {
                        "resources": [
                            {"kind": "Service", "name": "tumor", "status": "Synced", "message": "ok"},
                            {
                                "kind": "Namespace",
                                "name": "other",
                                "status": "SyncFailed",
                                "message": "resource :Namespace is not permitted in project dev",
                            },
                        ]
                    },
                }
            },
            "Namespace other: resource :Namespace is not permitted in project dev",
        ),
        (
            {"operationState": {"phase": "Running", "retryCount": 2, "message": "it is refused. Retrying"}},
            "the sync fails: it is refused. Retrying",
        ),
    ],
)
def test_the_reason_of_a_sync_that_fails(
    workspace: Workspace, cluster: KubeDouble, status: dict[str, Any], reason: str
) -> None:
    cluster.add(at(workspace, sync="OutOfSync", **status))
    assert only(workspace).message == reason


def test_a_release_that_argo_cd_has_not_made_is_missing(workspace: Workspace, cluster: KubeDouble) -> None:
    found = only(workspace)
    assert (found.sync, found.health, found.version, found.desired) == ("OutOfSync", "Missing", None, 3)
    assert found.message == "Argo CD has not made its Application yet"
    cluster.add(application_set("dev", "rpc error: code = Unknown desc = repository not found"))
    assert only(workspace).message == "its ApplicationSet fails: repository not found"
    cluster.objects = {key: each for key, each in cluster.objects.items() if each["kind"] != "ApplicationSet"}
    assert only(workspace).message.startswith("there is no ApplicationSet 'dev' in the cluster")


def test_a_release_that_argo_cd_has_not_seen_is_out_of_sync(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.add(at(workspace), model_pod("tumor", "dev", 3))
    (workspace.root / "README.md").write_text("nothing of the model")
    git(workspace.root, "add", "README.md")
    git(workspace.root, "commit", "--quiet", "--message=Another file")
    assert only(workspace).well, "its folder is the same in the newer commit"
    commit = release(workspace, "tumor", "dev", 4)
    found = only(workspace)
    assert (found.sync, found.health, found.version, found.desired) == ("OutOfSync", "Healthy", 3, 4)
    assert found.message == f"Argo CD has not seen commit {commit[:10]} yet; version 3 goes on serving"


def test_a_commit_that_git_does_not_have_is_of_another_repository(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.add(application("tumor", "dev", revision="1" * 40), model_pod("tumor", "dev", 3))
    found = only(workspace)
    assert (found.sync, found.health) == ("Unknown", "Healthy")
    assert found.message.startswith("runs commit 1111111111, which is not in git: does Argo CD follow another")


def test_in_a_shallow_clone_an_old_commit_says_nothing(
    workspace: Workspace, cluster: KubeDouble, tmp_path: Path
) -> None:
    old = head(workspace)
    release(workspace, "tumor", "staging", 1)
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{workspace.root}", "shallow")
    git(tmp_path / "shallow", "remote", "remove", "origin")
    shallow = Workspace(tmp_path / "shallow")
    access.save(shallow, access.require(workspace))
    cluster.add(application("tumor", "dev", revision=old), model_pod("tumor", "dev", 3))
    assert next(each for each in argocd.applications(shallow) if each.environment == "dev").well


def test_waiting_goes_on_through_a_restart_of_the_server(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.add(at(workspace, health="Progressing"), service("tumor", "dev"))
    told: list[str] = []

    def come_back() -> None:
        cluster.add(at(workspace), model_pod("tumor", "dev", 3))
        cluster.start()

    cluster.stop()
    later = threading.Timer(1.0, come_back)
    later.start()
    assert wait_healthy(workspace, "tumor", "dev", 3, timeout=20, watch=told.append) == "http://10.96.7.7"
    later.join()
    assert told[-1] == "Healthy"


def test_waiting_ends_when_it_is_of_no_use(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.add(
        at(workspace, health="Progressing"),
        model_pod("tumor", "dev", 2, "old"),
        model_pod("tumor", "dev", 3, "new", ready=False, waiting="ImagePullBackOff", message="not found"),
    )
    with pytest.raises(Unavailable, match=r"tumor in dev: its image wharf\.local/\S+ cannot be pulled: not found"):
        wait_healthy(workspace, "tumor", "dev", 3, timeout=20)
    with pytest.raises(Unavailable, match=r"is not Healthy after 0\.5 seconds: Argo CD has not seen its release"):
        wait_healthy(workspace, "digits", "dev", timeout=0.5)


def test_what_git_has_no_release_of_is_being_removed(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.add(at(workspace), model_pod("tumor", "dev", 3), application("old", "dev", revision=head(workspace)))
    old = next(each for each in argocd.applications(workspace) if each.model == "old")
    assert (old.sync, old.desired) == ("OutOfSync", None)
    assert old.message == "is being removed: git has no release of it any more"


def test_a_rollout_counts_its_pods(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.add(
        at(workspace, health="Progressing"),
        deployment("tumor", "dev", 3),
        model_pod("tumor", "dev", 2, "old", started="2026-11-21T09:00:00Z"),
        model_pod("tumor", "dev", 3, "new", ready=False, waiting="ContainerCreating"),
    )
    found = only(workspace)
    assert found.message == "version 3 is rolling out: 0 of its 1 pods are ready; version 2 goes on serving"
    assert [pod.status for pod in found.pods] == ["Running", "ContainerCreating"]


def test_a_pod_that_ends_does_not_count(workspace: Workspace, cluster: KubeDouble) -> None:
    going = model_pod("tumor", "dev", 2, "old")
    going["metadata"]["deletionTimestamp"] = "2026-11-21T10:00:00Z"
    cluster.add(at(workspace), going, model_pod("tumor", "dev", 3, "new"))
    found = only(workspace)
    assert found.version == 3
    assert [(pod.name, pod.status) for pod in found.pods] == [("tumor-new", "Running"), ("tumor-old", "Terminating")]


@pytest.mark.parametrize(("available", "health"), [(1, "Healthy"), (0, "Degraded")])
def test_without_its_controller_argo_cd_is_not_believed(
    workspace: Workspace, cluster: KubeDouble, available: int, health: str
) -> None:
    cluster.add(at(workspace), model_pod("tumor", "dev", 3), *controllers("application-controller"))
    cluster.add(deployment("tumor", "dev", 3, availableReplicas=available))
    found = only(workspace)
    assert (found.sync, found.health) == ("Unknown", health)
    assert found.message.startswith("argocd-application-controller does not run (CrashLoopBackOff")
    assert agent_fault(workspace).startswith("argocd-application-controller does not run")


def test_another_part_of_argo_cd_that_does_not_run_is_said(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.add(at(workspace), model_pod("tumor", "dev", 3), *controllers("repo-server"))
    found = only(workspace)
    assert found.well and "new commits do not reach the cluster" in found.message


def test_no_argo_cd_at_all(workspace: Workspace, cluster: KubeDouble) -> None:
    cluster.objects.clear()
    assert agent_fault(workspace) == "Argo CD does not run in this cluster; `make cluster` repairs it"


def test_the_revision_is_that_of_the_root_application(workspace: Workspace, cluster: KubeDouble) -> None:
    assert revision(workspace) == ""
    root = application("x", "y", revision="f" * 40)
    root["metadata"] = {"name": "modelwharf", "namespace": "argocd"}
    cluster.add(root)
    assert revision(workspace) == "f" * 40


def test_a_cluster_that_is_away_is_one_line(
    workspace: Workspace, cluster: KubeDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.stop()
    with pytest.raises(Unavailable, match="does not answer"):
        argocd.applications(workspace)
    assert main(["status"]) == 4
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert "does not answer" in agent_fault(workspace)


def test_the_command_looks_as_on_the_local_target(
    workspace: Workspace, cluster: KubeDouble, capsys: pytest.CaptureFixture[str]
) -> None:
    release(workspace, "tumor", "prod", 2)
    cluster.add(at(workspace, health="Degraded"), model_pod("tumor", "dev", 3, ready=False, waiting="InvalidImageName"))
    cluster.add(application("tumor", "prod", revision=head(workspace)), model_pod("tumor", "prod", 2, "p"))
    cluster.add(service("tumor", "dev"), service("tumor", "prod"))
    assert main(["status"]) == 0
    out, err = capsys.readouterr()
    header, dev, prod, gap, pods, pod = out.splitlines()
    assert header.split() == ["MODEL", "ENVIRONMENT", "VERSION", "SYNC", "HEALTH", "ADDRESS"]
    assert dev.split()[:6] == ["tumor", "dev", "-", "Synced", "Degraded", "http://10.96.7.7"]
    assert prod.split() == ["tumor", "prod", "2", "Synced", "Healthy", "http://10.96.7.7"]
    assert (gap, pods.split()[:4]) == ("", ["POD", "VERSION", "READY", "STATUS"])
    assert pod.split()[:5] == ["team-dev/tumor-a", "3", "no", "InvalidImageName", "0"], "only pods of what is not well"
    assert "`wharf logs tumor --env dev` shows why, `wharf rollback tumor --env dev` goes back" in err
    assert main(["status", "tumor", "--env", "prod"]) == 0
    assert "team-prod/tumor-p" in capsys.readouterr().out, "who asks for one model sees its pods"
    assert main(["status", "--env", "prod", "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["model"], told["version"], told["target"], told["pods"][0]["node"]) == (
        "tumor",
        2,
        "cluster",
        "node-1",
    )


def test_pods_of_jobs_are_not_those_of_the_service(workspace: Workspace, cluster: KubeDouble) -> None:
    job = model_pod("tumor", "dev", 9, "job")
    job["metadata"]["labels"] = labels("tumor", "dev", 9) | {"app.kubernetes.io/component": "training"}
    cluster.add(at(workspace), model_pod("tumor", "dev", 3), job)
    assert [pod.name for pod in only(workspace).pods] == ["tumor-a"]


def test_one_look_is_a_handful_of_requests(workspace: Workspace, cluster: KubeDouble) -> None:
    for number in range(200):
        cluster.add(application(f"m{number}", "dev"), model_pod(f"m{number}", "dev", 1))
    argocd.applications(workspace)
    cluster.asked.clear()
    assert len(argocd.applications(workspace)) == 201
    assert len(cluster.asked) == 6 + 1  # tumor has no Application yet, and Argo CD is asked about it again


def test_ages_are_written_as_kubectl_does() -> None:
    ages = [night.age(1000.0, 1000.0 + seconds) for seconds in (0, 119, 120, 7199, 7200, 172799, 172800)]
    assert ages == ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]
    assert night.age(0) == "-"
