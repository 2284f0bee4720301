"""`wharf validate` of a change: what it looks at, who may change what, and how the server-side hook calls it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from ci.errors import Mistake
from ci.render import render_all, write
from ci.shell import git
from ci.validate import check, validate
from tests.ci.gitops_tree import ROOT, commit, make_tree, pin, put, release_all
from tests.registry_double import RegistryDouble, registry_double

NOTHING = "0" * 40


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Generator[RegistryDouble]:
    with registry_double() as double:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", double.url)
        yield double


@pytest.fixture
def tree(tmp_path: Path, registry: RegistryDouble) -> Path:
    root = make_tree(tmp_path / "repository", "tumor", "wine")
    tumor, wine = registry.add("tumor", 1), registry.add("wine", 1)
    release_all(root, *[pin(tumor, name) for name in ("dev", "staging", "prod")], pin(wine, "dev"))
    return root


def edit(root: Path, path: str, old: str, new: str) -> None:
    text = (root / path).read_text()
    assert old in text
    (root / path).write_text(text.replace(old, new))


def test_nothing_changed(tree: Path, registry: RegistryDouble) -> None:
    registry.calls.clear()
    report = check(tree, changed="HEAD")
    assert (report.faults, report.files, report.releases, report.commits) == ([], 0, 0, 0)
    assert registry.calls == []
    assert "that changed since " in report.summary()


def test_an_unknown_revision(tree: Path) -> None:
    with pytest.raises(Mistake, match="no revision 'mian' to compare with in this repository"):
        validate(tree, changed="mian")
    with pytest.raises(Mistake, match="no revision '--all'"):
        validate(tree, changed="--all")


def test_only_the_changed_release_is_looked_up(tree: Path, registry: RegistryDouble) -> None:
    del registry.versions["tumor", 1]  # a fault elsewhere, which a full check finds
    assert validate(tree) != []
    registry.calls.clear()
    release_all(tree, pin(registry.add("wine", 2), "dev"))
    report = check(tree, changed="HEAD~1")
    assert report.faults == []
    assert (report.models, report.releases, report.commits) == (1, 1, 1)
    assert {call.split("/")[-1] for call in registry.calls} == {"get", "evidence.json"}


def test_files_that_are_not_committed_count(tree: Path) -> None:
    edit(tree, "gitops/rendered/dev/wine/service.yaml", "port: 80", "port: 81")
    (tree / "models/wine/notes.txt").write_text("key = AKIA" + "A" * 16)
    faults = validate(tree, changed="HEAD")
    assert [fault.split(":")[0] for fault in faults] == [
        "gitops/rendered/dev/wine/service.yaml",
        "models/wine/notes.txt",
    ]


def test_a_changed_spec_needs_all_its_renderings(tree: Path) -> None:
    edit(tree, "models/tumor/model.yaml", "task:", "resources: {cpu: 500m}\ntask:")
    report = check(tree, changed="HEAD")
    assert {fault.split(":")[0] for fault in report.faults} == {
        f"gitops/rendered/{name}/tumor/deployment.yaml" for name in ("dev", "staging", "prod")
    }
    assert report.models == 1


def test_a_changed_environment_needs_all_its_releases(tree: Path) -> None:
    edit(tree, "gitops/environments/dev.yaml", "max: 2", "max: 3")
    report = check(tree, changed="HEAD")
    assert {fault.split(":")[0] for fault in report.faults} == {
        f"gitops/rendered/dev/{name}/horizontalpodautoscaler.yaml" for name in ("tumor", "wine")
    }
    write(tree, render_all(tree))
    assert validate(tree, changed="HEAD") == []


def test_a_changed_rule_checks_everything_again(tree: Path, registry: RegistryDouble) -> None:
    (tree / "ci").mkdir()
    (tree / "ci/render.py").write_text("# another way to render\n")
    registry.calls.clear()
    report = check(tree, changed="HEAD")
    assert (report.models, report.releases, report.manifests) == (2, 4, 24)
    assert registry.calls == []  # what is pinned did not change


def test_a_removed_model_leaves_releases_behind(tree: Path) -> None:
    (tree / "models/wine/model.yaml").unlink()
    faults = validate(tree, changed="HEAD")
    assert "gitops/releases/dev/wine.yaml: there is no model 'wine' (models/wine/model.yaml)" in faults


def test_a_removed_release_leaves_its_rendering(tree: Path) -> None:
    (tree / "gitops/releases/dev/wine.yaml").unlink()
    faults = validate(tree, changed="HEAD")
    assert len(faults) == 6
    assert "belongs to no release" in faults[0]


def test_the_order_is_kept_in_a_change(tree: Path, registry: RegistryDouble) -> None:
    release_all(tree, pin(registry.add("tumor", 2), "prod"))
    (fault,) = validate(tree, changed="HEAD~1")
    assert fault.startswith("gitops/releases/prod/tumor.yaml: version 2 was never in staging")


def test_one_change_does_not_take_a_version_through_two_environments(
    tree: Path, registry: RegistryDouble, tmp_path: Path
) -> None:
    base = git(tree, "rev-parse", "HEAD")
    facts = registry.add("tumor", 2)
    release_all(tree, *[pin(facts, name) for name in ("dev", "staging", "prod")])
    new = git(tree, "rev-parse", "HEAD")
    faults = validate(tree, changed=base)
    assert [fault.split(", and")[0] for fault in faults] == [
        "gitops/releases/prod/tumor.yaml: version 2 was never in staging",
        "gitops/releases/staging/tumor.yaml: version 2 was never in dev",
    ]
    done = judge(tmp_path, tree, base, new)
    assert done.returncode == 3 and "version 2 was never in dev" in done.stderr
    for step in ("HEAD~2", "HEAD~1", "HEAD"):  # one after the other each is in order
        git(tree, "checkout", "--quiet", "--detach", new)
        git(tree, "checkout", "--quiet", "--detach", step)
        assert validate(tree, changed="HEAD~1") == []


def test_a_merge_of_promotions_that_are_on_the_base_is_in_order(tree: Path, registry: RegistryDouble) -> None:
    git(tree, "checkout", "--quiet", "-b", "mine")
    (tree / "models/wine/data.py").write_text("import os\n")
    commit(tree, "Mine")
    git(tree, "checkout", "--quiet", "main")
    facts = registry.add("tumor", 2)
    release_all(tree, *[pin(facts, name) for name in ("dev", "staging", "prod")])
    git(tree, "checkout", "--quiet", "mine")
    git(tree, "merge", "--quiet", "--no-edit", "main")
    assert validate(tree, changed="main") == []


# commits


def commit_faults(tree: Path, base: str = "HEAD~1") -> list[str]:
    return [fault for fault in validate(tree, changed=base) if fault.startswith("commit ")]


def test_only_releasing_commits_change_releases(tree: Path, registry: RegistryDouble) -> None:
    put(tree, pin(registry.add("wine", 2), "dev"))
    made = commit(tree, "Bump by hand")
    assert validate(tree, changed="HEAD~1") == [
        f"commit {made[:10]}: gitops/releases/dev/wine.yaml: changed without a Wharf-Release trailer "
        "(only `wharf promote` and `wharf rollback` change releases; take it out of the commit)"
    ]
    assert validate(tree) == []  # the whole tree is judged without its history


def test_a_releasing_commit_changes_nothing_else(tree: Path, registry: RegistryDouble) -> None:
    release = pin(registry.add("wine", 2), "dev")
    put(tree, release)
    (tree / "models/wine/data.py").write_text("import os\n")
    made = commit(tree, "Release and more", release)
    assert commit_faults(tree) == [
        f"commit {made[:10]}: models/wine/data.py: a commit that releases changes releases and rendered manifests "
        "only (put it into a commit of its own)"
    ]


def test_trailers_name_what_is_released(tree: Path, registry: RegistryDouble) -> None:
    wine, tumor = pin(registry.add("wine", 2), "dev"), pin(registry.add("tumor", 2), "dev")
    put(tree, wine)
    made = commit(tree, "Lie", tumor)[:10]
    assert commit_faults(tree) == [
        f"commit {made}: gitops/releases/dev/wine.yaml: is changed, but no Wharf-Release names it",
        f"commit {made}: Wharf-Release names gitops/releases/dev/tumor.yaml, which it does not change",
    ]
    put(tree, tumor)
    made = commit(tree, "Another number", replace(tumor, version=7))[:10]
    assert commit_faults(tree) == [
        f"commit {made}: Wharf-Release says version 7, gitops/releases/dev/tumor.yaml holds 2"
    ]


def test_a_malformed_trailer(tree: Path, registry: RegistryDouble) -> None:
    put(tree, pin(registry.add("wine", 2), "dev"))
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "Release\n\nWharf-Release: wine 2")
    made = git(tree, "rev-parse", "HEAD")[:10]
    assert f"commit {made}: Wharf-Release: 'wine 2' is not <environment>/<model>@<version>" in commit_faults(tree)


def test_every_commit_of_the_range_is_judged(tree: Path, registry: RegistryDouble) -> None:
    put(tree, pin(registry.add("wine", 2), "dev"))
    bad = commit(tree, "By hand")
    put(tree, pin(registry.add("wine", 1), "dev"))
    undone = commit(tree, "And back")
    commit(tree, "Something else")
    assert [fault.split(":")[0] for fault in commit_faults(tree, "HEAD~3")] == [
        f"commit {bad[:10]}",
        f"commit {undone[:10]}",
    ]


def test_merging_releases_needs_no_trailer(tree: Path, registry: RegistryDouble) -> None:
    base = git(tree, "rev-parse", "HEAD")
    git(tree, "checkout", "--quiet", "-b", "releases")
    release_all(tree, pin(registry.add("wine", 2), "dev"))
    git(tree, "checkout", "--quiet", "main")
    (tree / "models/wine/data.py").write_text("import os\n")
    commit(tree, "Mine")
    git(tree, "merge", "--quiet", "--no-edit", "releases")
    assert validate(tree, changed=base) == []


@pytest.mark.parametrize("way", ["another version", "the old one again"])
def test_a_merge_changes_no_release(tree: Path, registry: RegistryDouble, way: str) -> None:
    base = git(tree, "rev-parse", "HEAD")
    first, second, third = registry.add("wine", 1), registry.add("wine", 2), registry.add("wine", 3)
    git(tree, "checkout", "--quiet", "-b", "mine")
    (tree / "models/wine/data.py").write_text("import os\n")
    commit(tree, "Mine")
    git(tree, "checkout", "--quiet", "main")
    release_all(tree, pin(second, "dev"))
    git(tree, "checkout", "--quiet", "mine")
    git(tree, "merge", "--quiet", "--no-commit", "--no-ff", "main")
    put(tree, pin(third if way == "another version" else first, "dev"))
    made = commit(tree, "Merge")
    assert len(git(tree, "rev-list", "--parents", "-1", "HEAD").split()) == 3
    for since in (base, "main"):
        assert validate(tree, changed=since) == [
            f"commit {made[:10]}: gitops/releases/dev/wine.yaml: changed by a merge "
            "(only `wharf promote` and `wharf rollback` change releases; merge again and keep what main has)"
        ]


def test_a_merge_may_choose_between_two_promotions(tree: Path, registry: RegistryDouble) -> None:
    git(tree, "checkout", "--quiet", "-b", "mine")
    release_all(tree, pin(registry.add("wine", 2), "dev"))
    git(tree, "checkout", "--quiet", "main")
    release_all(tree, pin(registry.add("wine", 3), "dev"))
    git(tree, "checkout", "--quiet", "mine")
    git(tree, "merge", "--quiet", "--no-edit", "--strategy-option=theirs", "main")
    assert validate(tree, changed="main") == []


def test_people_may_render_after_a_change_of_settings(tree: Path) -> None:
    edit(tree, "gitops/environments/dev.yaml", "max: 2", "max: 3")
    write(tree, render_all(tree))
    commit(tree, "More replicas in dev")
    assert validate(tree, changed="HEAD~1") == []


# the hook


def judge(tmp_path: Path, tree: Path, old: str, new: str) -> subprocess.CompletedProcess[str]:
    """Run the validation as a hook does: on a checkout without .git, next to a bare repository."""
    origin, pushed = tmp_path / "origin.git", tmp_path / "pushed"
    if not origin.exists():
        git(tmp_path, "clone", "--quiet", "--bare", str(tree), str(origin))
    git(tree, "push", "--quiet", str(origin), f"{new}:refs/heads/pushed-{new}")
    pushed.mkdir(exist_ok=True)
    index = {"GIT_INDEX_FILE": str(tmp_path / "index"), "GIT_WORK_TREE": str(pushed), "GIT_DIR": str(origin)}
    git(origin, "read-tree", "--reset", "-u", new, env=index)
    options = ["--root", str(pushed), "--git-dir", str(origin), "--old", old, "--new", new]
    command = [sys.executable, "-m", "ci.cli", "validate", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_hook_judges_the_pushed_tree(tree: Path, registry: RegistryDouble, tmp_path: Path) -> None:
    old = git(tree, "rev-parse", "HEAD")
    good = release_all(tree, pin(registry.add("wine", 2), "dev"))
    done = judge(tmp_path, tree, old, good)
    assert (done.returncode, done.stderr.count("ERROR")) == (0, 0), done.stderr
    assert "checked 1 models, 3 environments, 1 releases, " in done.stdout
    assert " 1 commits that changed since " in done.stdout
    bad = release_all(tree, pin(registry.add("wine", 3, evidence={"verdict": "refused"}), "dev"))
    # What the working tree holds does not matter, only what is pushed.
    git(tree, "checkout", "--quiet", old)
    done = judge(tmp_path, tree, good, bad)
    assert done.returncode == 3
    assert "ERROR  gitops/releases/dev/wine.yaml: version: the evidence of version 3 says 'refused'" in done.stderr


def test_a_first_push_is_checked_as_a_whole(tree: Path, registry: RegistryDouble, tmp_path: Path) -> None:
    new = git(tree, "rev-parse", "HEAD")
    done = judge(tmp_path, tree, NOTHING, new)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("checked 2 models, 3 environments, 4 releases, 24 manifests, ")
    del registry.versions["wine", 1]
    done = judge(tmp_path, tree, NOTHING, new)
    assert done.returncode == 3
    assert "model 'wine' has no version 1 in the registry" in done.stderr


def test_options_that_do_not_go_together(tree: Path) -> None:
    with pytest.raises(Mistake, match="--git-dir and --new go together"):
        validate(tree, new="HEAD")
