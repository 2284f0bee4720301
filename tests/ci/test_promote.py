"""Promotions to the local target: what is in the commit, what is refused, and that nothing of the user's is touched."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from ci import cli
from ci.environments import load_all
from ci.errors import Mistake, Refusal, Unavailable
from ci.git import gitcommit
from ci.promote import promote
from ci.render import render_release
from ci.shell import git
from ci.workspace import Workspace, load_spec
from tests.ci.local_target import judged, main_of, push, released, save, set_up, standing_of
from tests.registry_double import RegistryDouble, registry_double


@pytest.fixture
def registry() -> Generator[RegistryDouble]:
    with registry_double() as double:
        yield double


@pytest.fixture
def home(workspace: Workspace, registry: RegistryDouble) -> Path:
    return set_up(workspace, registry)


def test_a_promotion_is_one_commit_with_release_and_rendering(
    workspace: Workspace, home: Path, registry: RegistryDouble
) -> None:
    facts = registry.add("tumor", 1)
    (workspace.root / "note.txt").write_text("work in progress")
    start, before = main_of(home), standing_of(workspace)
    made = promote(workspace, "tumor", "dev")
    assert made.summary == f"dev/tumor: version 1 is released, commit {made.commit and made.commit[:10]} on wharf/main"
    assert (made.version, made.previous, made.changed, made.branch) == (1, None, True, "main")
    assert main_of(home) == made.commit
    assert git(home, "rev-parse", "main^") == start
    assert standing_of(workspace) == before
    release = released(home, "dev", "tumor")
    assert release is not None
    assert (release.version, release.run, release.bento) == (1, facts.run, facts.bento)
    assert (release.artifact, release.evidence) == (f"sha256:{facts.artifact}", f"sha256:{facts.evidence}")
    wanted = render_release(release, load_spec(workspace, "tumor"), load_all(workspace.root)[0])
    folder = "gitops/rendered/dev/tumor"
    assert gitcommit.files(home, "main", folder) == sorted(f"{folder}/{name}" for name in wanted)
    for name, text in wanted.items():
        assert gitcommit.read(home, "main", f"{folder}/{name}") == text
    touched = git(home, "diff", "--name-only", start, "main").splitlines()
    assert all(path.startswith(("gitops/releases/", "gitops/rendered/")) for path in touched)
    trailers = git(home, "log", "-1", "--format=%an <%ae>%n%s%n%(trailers:only)", "main").splitlines()
    assert trailers == [
        "Tests <tests@localhost>",
        "Promote tumor version 1 to dev",
        "Wharf-Release: dev/tumor@1",
        "Wharf-Action: promote",
    ]
    assert len(judged(home)) == 1


def test_what_is_there_already_is_left(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    registry.add("tumor", 1)
    first = promote(workspace, "tumor", "dev")
    again = promote(workspace, "tumor", "dev")
    assert again.summary == "dev/tumor: version 1 is already there; nothing to do"
    assert (again.changed, again.commit) == (False, None)
    assert main_of(home) == first.commit


def test_the_first_environment_gets_the_newest_version(
    workspace: Workspace, home: Path, registry: RegistryDouble
) -> None:
    registry.add("tumor", 1)
    promote(workspace, "tumor", "dev")
    registry.add("tumor", 2)
    registry.add("tumor", 3, verdict="")  # interrupted: not complete
    made = promote(workspace, "tumor", "dev")
    assert (made.version, made.previous) == (2, 1)


def test_a_later_environment_gets_what_ran_before_it_even_if_it_was_built_again(
    workspace: Workspace, home: Path, registry: RegistryDouble
) -> None:
    registry.add("tumor", 1)
    promote(workspace, "tumor", "dev")
    ran = released(home, "dev", "tumor")
    registry.add("tumor", 1, bento="tumor:" + "0" * 16, image="wharf.local/tumor@sha256:" + "0" * 64)
    registry.add("tumor", 2)
    promote(workspace, "tumor", "staging")
    made = promote(workspace, "tumor", "prod")
    assert made.version == 1
    assert ran is not None
    assert released(home, "staging", "tumor") == replace(ran, environment="staging")
    assert released(home, "prod", "tumor") == replace(ran, environment="prod")


def test_a_version_that_ran_before_may_still_go_on(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    for number in (1, 2):
        registry.add("tumor", number)
        promote(workspace, "tumor", "dev")
    assert promote(workspace, "tumor", "staging", version=1).version == 1


def test_files_of_a_former_rendering_go_away(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    registry.add("tumor", 1)
    promote(workspace, "tumor", "dev")
    git(workspace.root, "pull", "--quiet", "wharf", "main")
    stale = workspace.root / "gitops/rendered/dev/tumor/stale.yaml"
    stale.write_text("kind: Former\n")
    save(workspace, "As an older render left it")
    push(workspace)
    registry.add("tumor", 2)
    promote(workspace, "tumor", "dev")
    assert "gitops/rendered/dev/tumor/stale.yaml" not in gitcommit.files(home, "main", "gitops/rendered")


def test_spec_and_settings_come_from_main_not_from_the_working_tree(
    workspace: Workspace, home: Path, registry: RegistryDouble
) -> None:
    registry.add("tumor", 1)
    (workspace.models / "tumor" / "model.yaml").write_text("broken: [")
    (workspace.gitops / "environments" / "dev.yaml").unlink()
    assert promote(workspace, "tumor", "dev").changed


@pytest.mark.parametrize(
    ("name", "environment", "version", "error", "line"),
    [
        ("tumor", "devv", None, Mistake, "no environment 'devv' in gitops/environments/ (did you mean 'dev'?)"),
        ("tumour", "dev", None, Mistake, "no model 'tumour' in models/ (did you mean 'tumor'?)"),
        ("tumor", "dev", 7, Mistake, "model 'tumor' has no version 7 in the registry; the newest is 4"),
        ("tumor", "dev", 2, Refusal, "version 2 of 'tumor' did not pass the gate: its verdict is 'refused'"),
        ("tumor", "dev", 3, Mistake, "version 3 of 'tumor' has no bento"),
        ("tumor", "staging", None, Mistake, "nothing of 'tumor' is released in dev, where its next version would"),
        ("tumor", "prod", 4, Refusal, "version 4 of 'tumor' was never in staging, and prod comes after staging"),
    ],
)
def test_what_cannot_be_promoted(
    workspace: Workspace,
    home: Path,
    registry: RegistryDouble,
    name: str,
    environment: str,
    version: int | None,
    error: type[Mistake] | type[Refusal],
    line: str,
) -> None:
    registry.add("tumor", 2, verdict="refused")
    registry.add("tumor", 3, bento="", image="")
    registry.add("tumor", 4)
    start = main_of(home)
    with pytest.raises(error) as caught:
        promote(workspace, name, environment, version)
    assert caught.value.lines[0].startswith(line)
    assert len(caught.value.lines) == 1
    assert main_of(home) == start
    assert judged(home) == []


def test_a_model_without_a_version(workspace: Workspace, home: Path) -> None:
    with pytest.raises(Mistake, match="model 'tumor' has no version") as caught:
        promote(workspace, "tumor", "dev")
    assert caught.value.tip == "make one with `wharf ship tumor`"


def test_a_version_that_the_registry_changed_is_refused(
    workspace: Workspace, home: Path, registry: RegistryDouble
) -> None:
    registry.add("tumor", 1)
    promote(workspace, "tumor", "dev")
    registry.versions["tumor", 1]["wharf.artifact_sha256"] = "f" * 64
    with pytest.raises(Refusal, match=r"dev ran version 1 of 'tumor' with artifact sha256:.* the registry says"):
        promote(workspace, "tumor", "staging")


def test_a_model_that_is_not_pushed_says_so(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    registry.add("fresh", 1)
    folder = workspace.models / "fresh"
    folder.mkdir()
    (folder / "model.yaml").write_text("name: fresh\n")
    with pytest.raises(
        Mistake, match=r"wharf/main has no models/fresh/model\.yaml: your commit is not there"
    ) as caught:
        promote(workspace, "fresh", "dev")
    assert caught.value.tip == "run `git push wharf HEAD:main`, then this again"


def test_the_registry_being_down_is_unavailable(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    registry.add("tumor", 1)
    registry.status = 401
    with pytest.raises(Mistake):
        promote(workspace, "tumor", "dev")
    registry.close()
    with pytest.raises(Unavailable, match="does not answer"):
        promote(workspace, "tumor", "dev")


def test_an_origin_that_is_gone_is_unavailable(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    registry.add("tumor", 1)
    (home / "HEAD").unlink()
    with pytest.raises(Unavailable, match=r"the git remote 'wharf' .* does not answer"):
        promote(workspace, "tumor", "dev")


def test_without_any_remote_there_is_no_target(workspace: Workspace) -> None:
    with pytest.raises(Mistake, match="no target: there is neither the local origin nor a git remote named 'origin'"):
        promote(workspace, "tumor", "dev")


def test_the_origins_refusal_is_shown_and_nothing_moved(
    workspace: Workspace,
    home: Path,
    registry: RegistryDouble,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.add("tumor", 1)
    judge = workspace.root / "ci" / "cli.py"
    judge.write_text(
        'import sys\nsys.exit(print("ERROR  gitops/releases/dev/tumor.yaml: no\\nTIP    ask", file=sys.stderr) or 3)'
    )
    save(workspace, "A judge that refuses everything")
    git(home, "fetch", "--quiet", str(workspace.root), "+main:main")
    start, before = main_of(home), standing_of(workspace)
    monkeypatch.chdir(workspace.root)
    assert cli.main(["promote", "tumor", "--to", "dev"]) == 3
    assert capsys.readouterr().err.splitlines() == [
        "ERROR  wharf refused the push: pre-receive hook declined",
        "ERROR  gitops/releases/dev/tumor.yaml: no",
        "TIP    ask",
    ]
    assert main_of(home) == start
    assert standing_of(workspace) == before


def test_a_dry_run_shows_the_diff_and_changes_nothing(
    workspace: Workspace, home: Path, registry: RegistryDouble
) -> None:
    registry.add("tumor", 1)
    start = git(home, "for-each-ref")
    made = promote(workspace, "tumor", "dev", dry_run=True)
    assert made.summary == "dev/tumor: version 1 would be released; nothing was changed (dry run)"
    assert "+++ b/gitops/releases/dev/tumor.yaml" in made.diff
    assert "+version: 1" in made.diff
    assert (made.changed, made.commit) == (False, None)
    assert git(home, "for-each-ref") == start


class TestProposals:
    def test_a_proposal_waits_on_its_branch_and_is_accepted_by_promoting(
        self, workspace: Workspace, home: Path, registry: RegistryDouble
    ) -> None:
        registry.add("tumor", 1)
        start = main_of(home)
        made = promote(workspace, "tumor", "dev", propose=True)
        assert made.branch == "promote/dev-tumor-v1"
        assert main_of(home) == start
        assert released(home, "dev", "tumor", made.branch) is not None
        for command in made.next_steps[:2]:
            shown = git(workspace.root, *command.split()[1:])
        assert "+version: 1" in shown
        assert made.next_steps[2] == "wharf promote tumor --to dev --version 1"
        promote(workspace, "tumor", "dev", version=1)
        assert released(home, "dev", "tumor") is not None
        assert git(home, "for-each-ref", "--format=%(refname)") == "refs/heads/main"

    def test_a_proposal_is_accepted_by_a_push_too(
        self, workspace: Workspace, home: Path, registry: RegistryDouble
    ) -> None:
        registry.add("tumor", 1)
        made = promote(workspace, "tumor", "dev", propose=True)
        git(workspace.root, "fetch", "--quiet", "wharf")
        push(workspace, f"wharf/{made.branch}:main")
        assert main_of(home) == made.commit

    def test_proposing_again_pushes_nothing(self, workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
        registry.add("tumor", 1)
        first = promote(workspace, "tumor", "dev", propose=True)
        again = promote(workspace, "tumor", "dev", propose=True)
        assert (again.commit, again.changed, first.changed) == (first.commit, False, True)
        assert again.summary == "dev/tumor: version 1 was proposed before on branch promote/dev-tumor-v1 of wharf"
        assert len(judged(home)) == 1

    def test_a_proposal_is_made_again_on_a_newer_main(
        self, workspace: Workspace, home: Path, registry: RegistryDouble
    ) -> None:
        registry.add("tumor", 1)
        promote(workspace, "tumor", "dev", propose=True)
        new = save(workspace, "Meanwhile", **{"README.md": "meanwhile"})
        push(workspace)
        promote(workspace, "tumor", "dev", propose=True)
        assert git(home, "rev-parse", "promote/dev-tumor-v1^") == new

    def test_a_branch_with_a_persons_commit_is_left(
        self, workspace: Workspace, home: Path, registry: RegistryDouble
    ) -> None:
        registry.add("tumor", 1)
        save(workspace, "By hand", **{"README.md": "by hand"})
        push(workspace, "HEAD:promote/dev-tumor-v1")
        before = git(home, "for-each-ref")
        with pytest.raises(Refusal, match="holds a commit that wharf did not make"):
            promote(workspace, "tumor", "dev", propose=True)
        assert git(home, "for-each-ref") == before


def test_the_command_prints_one_json_object(
    workspace: Workspace,
    home: Path,
    registry: RegistryDouble,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry.add("tumor", 1)
    monkeypatch.chdir(workspace.models / "tumor")
    assert cli.main(["promote", "tumor", "--to", "dev", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["version"] == 1
    assert printed["changed"] is True
    assert printed["commit"] == main_of(home)


@pytest.mark.parametrize("value", ["0", "-1", "latest", "1.5"])
def test_a_version_is_a_number(workspace: Workspace, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workspace.root)
    with pytest.raises(SystemExit) as caught:
        cli.main(["promote", "tumor", "--to", "dev", f"--version={value}"])
    assert caught.value.code == 2
