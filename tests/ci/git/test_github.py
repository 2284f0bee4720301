"""Releases on GitHub and other git servers: a branch, one pull request with the evidence, nothing left on failure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from pathlib import Path

import pytest

from ci.errors import Mistake, Refusal, Unavailable
from ci.git import remote
from ci.promote import promote
from ci.rollback import rollback
from ci.shell import git
from ci.workspace import Workspace
from tests.ci.github_double import FakeGh, GitHubDouble, github_double
from tests.ci.local_target import main_of, released, save, standing_of
from tests.registry_double import RegistryDouble, registry_double

ADDRESS = "https://github.com/team/models.git"


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Generator[RegistryDouble]:
    with registry_double() as double:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", double.url)
        double.add("tumor", 1)
        double.add("tumor", 2)
        yield double


@pytest.fixture
def server(workspace: Workspace, registry: RegistryDouble, tmp_path: Path) -> Path:
    """A bare repository that git reaches under a GitHub address, as the remote `origin` of the workspace."""
    path = tmp_path / "server.git"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(path))
    git(workspace.root, "remote", "add", "origin", ADDRESS)
    git(workspace.root, "config", f"url.{path}.insteadOf", ADDRESS)
    git(workspace.root, "push", "--quiet", "origin", "HEAD:main")
    return path


@pytest.fixture
def no_gh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide a `gh` that the machine may have."""
    found = shutil.which
    monkeypatch.setattr("ci.git.github.shutil.which", lambda name: None if name == "gh" else found(name))


@pytest.fixture
def api(no_gh: None, monkeypatch: pytest.MonkeyPatch) -> Generator[GitHubDouble]:
    with github_double("team/models", "secret") as double:
        monkeypatch.setenv("GITHUB_API_URL", double.url)
        monkeypatch.setenv("GITHUB_TOKEN", "secret")
        monkeypatch.delenv("GH_TOKEN", raising=False)
        yield double


@pytest.fixture
def gh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGh:
    fake = FakeGh(tmp_path)
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    return fake


def branches(server: Path) -> list[str]:
    return git(server, "for-each-ref", "--format=%(refname:short)").splitlines()


@pytest.mark.parametrize(
    ("url", "repository"),
    [
        ("https://github.com/team/models.git", "team/models"),
        ("https://user@github.com/team/models", "team/models"),
        ("https://github.com/team/models/", "team/models"),
        ("git@github.com:team/models.git", "team/models"),
        ("ssh://git@github.com:22/team/models.git", "team/models"),
        ("https://github.example.com/team/models.git", None),
        ("https://gitlab.com/team/github.com/models.git", None),
        ("/srv/github.com/models.git", None),
    ],
)
def test_which_remote_is_github(workspace: Workspace, url: str, repository: str | None) -> None:
    git(workspace.root, "remote", "add", "origin", url)
    found = remote.target(workspace)
    assert found.kind == ("github" if repository else "git")
    assert found.repository == (repository or "")


def test_github_enterprise_is_named_by_the_environment(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_SERVER_URL", "https://github.example.com")
    git(workspace.root, "remote", "add", "origin", "git@github.example.com:team/models.git")
    assert remote.target(workspace).repository == "team/models"


class TestRest:
    def test_a_promotion_is_one_pull_request_with_the_evidence(
        self, workspace: Workspace, server: Path, api: GitHubDouble
    ) -> None:
        start, before = main_of(server), standing_of(workspace)
        made = promote(workspace, "tumor", "dev")
        assert made.url == "https://github.com/team/models/pull/1"
        assert made.summary == "dev/tumor: version 2 is proposed: https://github.com/team/models/pull/1"
        assert main_of(server) == start
        assert standing_of(workspace) == before
        release = released(server, "dev", "tumor", "promote/dev-tumor-v2")
        assert release is not None
        (pull,) = api.pulls
        assert (pull["title"], pull["base"]) == ("Promote tumor version 2 to dev", "main")
        for text in (
            "**tumor** in **dev**: nothing → **version 2**",
            "| roc_auc | 0.99 | 0.98 to 1 |",
            "| ✅ | metric.roc_auc.min | 0.99 | 0.97 | 0.99 >= 0.97 |",
            "### Gate: passed",
            "no champion yet",
            f"https://github.com/team/models/commit/{release.commit}",
            release.evidence,
            release.image,
        ):
            assert text in pull["body"]

    def test_again_brings_the_same_pull_request_up_to_date(
        self, workspace: Workspace, server: Path, api: GitHubDouble
    ) -> None:
        promote(workspace, "tumor", "dev")
        new = save(workspace, "Meanwhile", **{"README.md": "meanwhile"})
        git(workspace.root, "push", "--quiet", "origin", "HEAD:main")
        api.pulls[0]["body"] = "old"
        promote(workspace, "tumor", "dev")
        assert len(api.pulls) == 1
        assert "version 2" in api.pulls[0]["body"]
        assert git(server, "rev-parse", "promote/dev-tumor-v2^") == new

    @pytest.mark.parametrize(("status", "error"), [(422, Refusal), (403, Refusal), (502, Unavailable)])
    def test_when_it_fails_the_branch_is_taken_back(
        self,
        workspace: Workspace,
        server: Path,
        api: GitHubDouble,
        status: int,
        error: type[Refusal] | type[Unavailable],
    ) -> None:
        api.status = status
        with pytest.raises(error) as caught:
            promote(workspace, "tumor", "dev")
        assert caught.value.lines == [
            f"GitHub said {status} to POST /repos/team/models/pulls: Validation Failed: told to fail"
        ]
        assert branches(server) == ["main"]

    def test_when_it_fails_an_older_branch_is_put_back(
        self, workspace: Workspace, server: Path, api: GitHubDouble
    ) -> None:
        first = promote(workspace, "tumor", "dev")
        save(workspace, "Meanwhile", **{"README.md": "meanwhile"})
        git(workspace.root, "push", "--quiet", "origin", "HEAD:main")
        api.status = 500
        with pytest.raises(Unavailable):
            promote(workspace, "tumor", "dev")
        assert git(server, "rev-parse", "promote/dev-tumor-v2") == first.commit

    def test_a_wrong_token_names_what_it_needs(
        self, workspace: Workspace, server: Path, api: GitHubDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("GITHUB_TOKEN", "wrong")
        with pytest.raises(Refusal, match=r"GitHub said 401 .* Bad credentials") as caught:
            promote(workspace, "tumor", "dev")
        assert "write contents and pull requests" in caught.value.tip
        assert branches(server) == ["main"]

    def test_no_way_to_open_one_pushes_nothing(
        self, workspace: Workspace, server: Path, api: GitHubDouble, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("GITHUB_TOKEN")
        with pytest.raises(Mistake, match="needs the `gh` command or a token in GITHUB_TOKEN; nothing was pushed"):
            promote(workspace, "tumor", "dev")
        assert branches(server) == ["main"]

    def test_github_that_does_not_answer(self, workspace: Workspace, server: Path, api: GitHubDouble) -> None:
        api.close()
        with pytest.raises(Unavailable, match="does not answer"):
            promote(workspace, "tumor", "dev")
        assert branches(server) == ["main"]

    def test_a_rollback_is_a_pull_request_too(self, workspace: Workspace, server: Path, api: GitHubDouble) -> None:
        for version in (1, 2):
            made = promote(workspace, "tumor", "dev", version)
            git(workspace.root, "push", "--quiet", "origin", f"{made.commit}:main")  # somebody merges it
        made = rollback(workspace, "tumor", "dev")
        assert made.branch == "rollback/dev-tumor-v1"
        assert api.pulls[-1]["title"] == "Roll tumor back to version 1 in dev"
        assert "Wharf-Action: rollback" in api.pulls[-1]["body"]


class TestGh:
    def test_it_opens_and_updates_one_pull_request(self, workspace: Workspace, server: Path, gh: FakeGh) -> None:
        made = promote(workspace, "tumor", "dev")
        assert made.url == "https://github.com/team/models/pull/1"
        again = promote(workspace, "tumor", "dev")
        assert (again.url, again.changed) == (made.url, False)
        (pull,) = gh.pulls
        assert pull["head"] == "promote/dev-tumor-v2"
        assert "| roc_auc | 0.99 |" in pull["body"]
        assert [words[1] for words in gh.calls] == ["list", "create", "list", "edit"]
        assert all(words[-2:] == ["--repo", "github.com/team/models"] for words in gh.calls)

    def test_when_it_fails_the_branch_is_taken_back(self, workspace: Workspace, server: Path, gh: FakeGh) -> None:
        gh.fail(True)
        with pytest.raises(Unavailable, match="the pull request on team/models failed: gh: pull request create failed"):
            promote(workspace, "tumor", "dev")
        assert branches(server) == ["main"]
        gh.fail(False)
        assert promote(workspace, "tumor", "dev").url

    def test_when_it_hangs_the_branch_is_taken_back(
        self, workspace: Workspace, server: Path, gh: FakeGh, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (gh.folder / "gh").write_text("#!/bin/sh\nexec sleep 60\n")
        monkeypatch.setattr("ci.git.github._GH_TIMEOUT_S", 0.5)
        with pytest.raises(
            Unavailable, match=r"the pull request on team/models failed: gh did not end in 0\.5 seconds"
        ):
            promote(workspace, "tumor", "dev")
        assert branches(server) == ["main"]


def test_another_git_server_gets_a_branch_to_merge(
    workspace: Workspace, registry: RegistryDouble, tmp_path: Path
) -> None:
    path = tmp_path / "server.git"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(path))
    git(workspace.root, "remote", "add", "origin", str(path))
    git(workspace.root, "push", "--quiet", "origin", "HEAD:main")
    made = promote(workspace, "tumor", "dev")
    assert made.summary == "dev/tumor: version 2 is proposed on branch promote/dev-tumor-v2 of origin"
    assert made.next_steps[-1] == f"open a merge request of promote/dev-tumor-v2 into main on {path}"
    assert branches(path) == ["main", "promote/dev-tumor-v2"]


def test_a_remote_without_main_says_how_to_make_one(
    workspace: Workspace, registry: RegistryDouble, tmp_path: Path
) -> None:
    git(tmp_path, "init", "--quiet", "--bare", "server.git")
    git(workspace.root, "remote", "add", "origin", str(tmp_path / "server.git"))
    with pytest.raises(Mistake, match="origin has no branch main") as caught:
        promote(workspace, "tumor", "dev")
    assert caught.value.tip == "run `git push origin HEAD:main`"
