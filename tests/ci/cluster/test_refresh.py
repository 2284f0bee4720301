"""A push is told to Argo CD: what it touches and nothing else, and never at the cost of the push."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from ci.cluster import access, refresh
from ci.cluster.access import Access
from ci.git import remote
from ci.git.remote import MAIN, Push, Remote
from ci.shell import git, run
from ci.workspace import Workspace
from tests.ci.cluster.kube_double import KubeDouble, close_clients
from tests.ci.local_target import main_of, set_up
from tests.registry_double import registry_double

pytestmark = pytest.mark.slow  # each pushes for real

REFRESH, SET_REFRESH = "argocd.argoproj.io/refresh", "argocd.argoproj.io/application-set-refresh"


@pytest.fixture
def cluster(tmp_path: Path) -> Generator[KubeDouble]:
    with KubeDouble(tmp_path) as double:
        for kind, names in (("Application", ["tumor-dev", "digits-dev", "modelwharf"]), ("ApplicationSet", ["dev"])):
            for name in names:
                metadata = {"name": name, "namespace": "argocd"}
                double.add({"apiVersion": "argoproj.io/v1alpha1", "kind": kind, "metadata": metadata})
        yield double


@pytest.fixture
def origin(workspace: Workspace, cluster: KubeDouble) -> Generator[Path]:
    """The origin of a workspace on the cluster; tumor and digits are rendered in dev."""
    write(workspace, "gitops/rendered/dev/tumor/deployment.yaml", "1")
    write(workspace, "gitops/rendered/dev/tumor/service.yaml", "1")
    write(workspace, "gitops/rendered/dev/digits/deployment.yaml", "1")
    with registry_double() as registry:
        found = set_up(workspace, registry)  # commits all of it
        shutil.rmtree(workspace.root / "ci")  # the judge is in the commit; the hook uses the code that is installed
        access.save(workspace, Access("node", cluster.kubeconfig, "double", "wharf.local", "x", "/origin.git"))
        yield found
    access.save(workspace, Access("node", cluster.kubeconfig, "double", "wharf.local", "x", "/origin.git"))
    close_clients(workspace)


def write(workspace: Workspace, path: str, text: str | None) -> None:
    file = workspace.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    if text is None:
        file.unlink()
    else:
        file.write_text(text)


def commit(workspace: Workspace, **changes: str | None) -> str:
    """Commit `changes` (path: text) and nothing else."""
    for path, text in changes.items():
        write(workspace, path, text)
    git(workspace.root, "add", "--all", "--", *changes)
    git(workspace.root, "commit", "--quiet", "--message=Change")
    return git(workspace.root, "rev-parse", "HEAD")


def pushed(workspace: Workspace) -> str:
    """Push as a person does and return what the origin said."""
    command = ["git", "push", "wharf", "HEAD:main"]
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, check=True)
    return "\n".join(remote.remote_lines(done.stderr))


def told(cluster: KubeDouble) -> dict[str, dict[str, str]]:
    """Return the annotations by name of the object."""
    return {
        each["metadata"]["name"]: each["metadata"]["annotations"]
        for each in cluster.objects.values()
        if each["metadata"].get("annotations")
    }


def test_a_change_in_a_folder_is_told_to_its_application_only(
    workspace: Workspace, cluster: KubeDouble, origin: Path
) -> None:
    new = commit(workspace, **{"gitops/rendered/dev/tumor/deployment.yaml": "2"})
    assert pushed(workspace) == "Argo CD was told: tumor-dev"
    assert told(cluster) == {"tumor-dev": {REFRESH: "normal"}}
    assert main_of(origin) == new


def test_one_file_that_appears_in_a_folder_is_no_new_folder(
    workspace: Workspace, cluster: KubeDouble, origin: Path
) -> None:
    commit(workspace, **{"gitops/rendered/dev/tumor/hpa.yaml": "1", "gitops/rendered/dev/tumor/service.yaml": None})
    pushed(workspace)
    assert told(cluster) == {"tumor-dev": {REFRESH: "normal"}}


def test_a_folder_that_appears_or_goes_is_told_to_the_application_set(
    workspace: Workspace, cluster: KubeDouble, origin: Path
) -> None:
    commit(workspace, **{"gitops/rendered/dev/flights/deployment.yaml": "1"})
    assert pushed(workspace) == "Argo CD was told: the releases of dev"
    assert told(cluster) == {"dev": {SET_REFRESH: "true"}}
    cluster.of("argoproj.io/v1alpha1/ApplicationSet", "dev", "argocd")["metadata"].pop("annotations")
    commit(workspace, **{"gitops/rendered/dev/digits/deployment.yaml": None})
    pushed(workspace)
    assert told(cluster) == {"dev": {SET_REFRESH: "true"}}


def test_projects_and_sets_are_told_to_the_root(workspace: Workspace, cluster: KubeDouble, origin: Path) -> None:
    commit(workspace, **{"gitops/projects/dev.yaml": "1", "gitops/appsets/dev.yaml": "1"})
    assert pushed(workspace) == "Argo CD was told: projects and application sets"
    assert told(cluster) == {"modelwharf": {REFRESH: "normal"}}


def test_other_files_and_other_branches_are_told_to_nobody(
    workspace: Workspace, cluster: KubeDouble, origin: Path
) -> None:
    commit(workspace, **{"README.md": "more", "gitops/releases/dev/tumor.yaml": "version: 2"})
    assert pushed(workspace) == ""
    commit(workspace, **{"gitops/rendered/dev/tumor/deployment.yaml": "2"})
    git(workspace.root, "push", "--quiet", "wharf", "HEAD:refs/heads/promote/dev-tumor-v2")
    assert told(cluster) == {}


def test_what_argo_cd_does_not_have_is_left_out(workspace: Workspace, cluster: KubeDouble, origin: Path) -> None:
    cluster.objects.clear()
    commit(workspace, **{"gitops/rendered/dev/tumor/deployment.yaml": "2"})
    assert pushed(workspace) == "Argo CD was told: tumor-dev"


def test_a_cluster_that_is_away_does_not_fail_the_push(workspace: Workspace, cluster: KubeDouble, origin: Path) -> None:
    cluster.stop()
    new = commit(workspace, **{"gitops/rendered/dev/tumor/deployment.yaml": "2"})
    begun = time.monotonic()
    (line,) = pushed(workspace).splitlines()
    assert line.startswith("Argo CD was not told of this push and will see it at its next poll: the cluster's API")
    assert main_of(origin) == new and time.monotonic() - begun < 20


def test_code_that_cannot_run_does_not_fail_the_push(workspace: Workspace, origin: Path) -> None:
    (workspace.root / "ci").mkdir()
    (workspace.root / "ci" / "__init__.py").write_text("raise ValueError('being edited')")
    new = commit(workspace, **{"gitops/rendered/dev/tumor/deployment.yaml": "2"})
    assert pushed(workspace) == (
        "Argo CD was not told of this push and will see it at its next poll: ValueError: being edited"
    )
    assert main_of(origin) == new


def test_on_the_local_target_nothing_is_started(workspace: Workspace, cluster: KubeDouble, origin: Path) -> None:
    access.forget(workspace)
    (origin / "hooks" / "post_receive.py").write_text("raise SystemExit('started')")
    commit(workspace, **{"gitops/rendered/dev/tumor/deployment.yaml": "2"})
    assert pushed(workspace) == "" and told(cluster) == {}


def test_the_first_commit_of_all_touches_everything(workspace: Workspace, origin: Path) -> None:
    what = refresh.touched(workspace.root, "0" * 40, git(workspace.root, "rev-parse", "HEAD"))
    assert (what.applications, what.sets, what.root) == (set(), {"dev"}, True)


def test_what_our_commands_push_to_another_server_is_told_too(
    workspace: Workspace, cluster: KubeDouble, origin: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "server.git"
    run(["git", "clone", "--quiet", "--bare", str(workspace.root), str(bare)])
    new = commit(workspace, **{"gitops/rendered/dev/tumor/deployment.yaml": "2"})
    git(workspace.root, "remote", "add", "origin", str(bare))
    server = Remote("origin", str(bare), "git")
    assert remote.push(workspace.root, server, Push("refs/heads/promote/x", new)) == []
    assert told(cluster) == {}
    assert remote.push(workspace.root, server, Push(MAIN, new)) == ["Argo CD was told: tumor-dev"]
    assert told(cluster) == {"tumor-dev": {REFRESH: "normal"}}


def test_many_names_are_one_short_line() -> None:
    what: Any = refresh.Touched({f"m{number}-dev" for number in range(9)}, {"dev"}, True)
    assert str(what) == "m0-dev, m1-dev, m2-dev, m3-dev and 7 more"
