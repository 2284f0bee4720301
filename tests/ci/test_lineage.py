"""Lineage: every link of a release is checked on the thing itself, and a broken one is named."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ci.build import content_hash
from ci.cli import main
from ci.errors import Mistake
from ci.gate import gate
from ci.lineage import lineage
from ci.mlflow_api.store import open_store
from ci.registry import facts, register, set_facts
from ci.release import Release, dump, load, path_of
from ci.shell import git
from ci.workspace import Workspace
from tests.ci.gated import add_model, add_run, fresh_name, logistic

pytestmark = pytest.mark.slow
LINKS = ["release", "version", "run", "data", "commit", "evidence", "artifact", "bento"]


@pytest.fixture
def name(workspace: Workspace, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model whose first version is registered and released in dev, by a commit in the working tree."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    monkeypatch.chdir(workspace.root)
    chosen = fresh_name()
    add_model(workspace, chosen)
    add_run(workspace, mlflow_uri, chosen)
    gate(workspace, chosen)
    number = register(workspace, chosen)
    digest = "0" * 64
    set_facts(workspace, chosen, number, bento=f"{chosen}:{digest[:16]}", image=f"wharf.local/{chosen}@sha256:{digest}")
    known = facts(workspace, chosen, number)
    write(
        workspace,
        Release(
            model=chosen,
            environment="dev",
            version=number,
            run=known.run,
            bento=str(known.bento),
            image=str(known.image),
            artifact=f"sha256:{known.artifact}",
            evidence=f"sha256:{known.evidence}",
            data=f"sha256:{known.data}",
            commit=known.commit,
        ),
    )
    return chosen


def write(workspace: Workspace, release: Release) -> Path:
    path = workspace.root / path_of(release.environment, release.model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(dump(release))
    git(workspace.root, "add", "gitops/releases")
    git(workspace.root, "commit", "--quiet", f"--message=Promote {release.model} version {release.version} to dev")
    return path


def released(workspace: Workspace, name: str) -> Release:
    found = load(workspace.root, "dev", name)
    assert found is not None
    return found


def broken(workspace: Workspace, name: str) -> dict[str, str]:
    return {link.link: link.detail for link in lineage(workspace, name, "dev").links if not link.ok}


def test_every_link_of_a_good_release_holds(
    workspace: Workspace, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lineage", name, "--env", "dev", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["model"], told["environment"], told["verified"]) == (name, "dev", True)
    assert [link["link"] for link in told["links"]] == LINKS
    assert all(link["ok"] for link in told["links"])
    by_name = {link["link"]: link for link in told["links"]}
    assert "by Tests, 20" in by_name["release"]["detail"]
    assert by_name["commit"]["value"] == git(workspace.root, "rev-parse", "HEAD~1")
    assert by_name["bento"]["detail"] == "not checked: it is not in this machine's store"
    assert told["unchecked"] == ["bento"]
    assert [link["link"] for link in told["links"] if not link["checked"]] == ["bento"]
    assert main(["lineage", name, "--env", "dev"]) == 0
    said = capsys.readouterr().out
    assert "every link that was checked holds; not checked here: bento" in said
    assert "every link holds" not in said and "-  bento" in said and "✓  artifact" in said


@pytest.mark.parametrize(
    ("part", "links"),
    [
        ("artifact", {"version", "run", "evidence", "artifact"}),
        ("evidence", {"version", "evidence"}),
        ("data", {"version", "data"}),
    ],
)
def test_a_digest_that_differs_breaks_its_links(workspace: Workspace, name: str, part: str, links: set[str]) -> None:
    write(workspace, replace(released(workspace, name), **{part: f"sha256:{'9' * 64}"}))
    assert set(broken(workspace, name)) == links


def test_an_artifact_with_one_flipped_byte_breaks_its_link(
    workspace: Workspace, mlflow_uri: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(mlflow_uri)
    run = store.run(released(workspace, name).run)
    assert run is not None
    content = bytearray(logistic())
    content[-1] ^= 1
    store.write(run, "model/artifact.onnx", bytes(content))
    assert main(["lineage", name, "--env", "dev"]) == 3
    said = capsys.readouterr()
    assert "✗  artifact" in said.out and "✓  evidence" in said.out
    assert f"ERROR  {name} in dev: artifact sha256:" in said.err


def test_evidence_that_was_changed_breaks_its_link(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    store, release = open_store(mlflow_uri), released(workspace, name)
    run = store.run(release.run)
    assert run is not None
    sha256 = release.evidence.removeprefix("sha256:")
    for path in ("evidence/evidence.json", f"evidence/{sha256[:16]}/evidence.json"):
        store.write(run, path, store.read(run, path).replace(b'"rows": 300', b'"rows": 900'))
    assert set(broken(workspace, name)) == {"evidence"}


def test_a_version_that_does_not_exist_breaks_its_link(workspace: Workspace, name: str) -> None:
    write(workspace, replace(released(workspace, name), version=9))
    assert broken(workspace, name) == {
        "version": f"model '{name}' has no version 9 in the registry; the newest is 1",
    }


def test_a_run_that_does_not_exist_breaks_all_that_hangs_on_it(workspace: Workspace, name: str) -> None:
    write(workspace, replace(released(workspace, name), run="0" * 32))
    assert set(broken(workspace, name)) == {"version", "run", "data", "commit", "evidence", "artifact"}


def test_a_commit_that_is_not_in_git_breaks_its_link(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    gone = "1" * 40
    open_store(mlflow_uri).set_run_tags(released(workspace, name).run, {"wharf.commit": gone})
    set_facts(workspace, name, 1, commit=gone)
    write(workspace, replace(released(workspace, name), commit=gone))
    assert broken(workspace, name) == {"commit": "is not in this repository; `git fetch` may bring it"}


def test_uncommitted_changes_break_the_link_to_the_commit(workspace: Workspace, mlflow_uri: str, name: str) -> None:
    open_store(mlflow_uri).set_run_tags(released(workspace, name).run, {"wharf.dirty": "true"})
    assert "uncommitted changes" in broken(workspace, name)["commit"]


def test_a_release_that_was_changed_by_hand_breaks_its_link(workspace: Workspace, name: str) -> None:
    path = workspace.root / path_of("dev", name)
    path.write_text(f"{path.read_text()}# a remark\n")
    assert "changed by hand since commit" in broken(workspace, name)["release"]


def test_a_bento_in_the_store_is_opened(workspace: Workspace, name: str) -> None:
    folder = workspace.bento_store / "bentos" / name / ("0" * 16) / "src" / "model"
    folder.mkdir(parents=True)
    (folder / "artifact.onnx").write_bytes(b"another artifact")
    assert "artifact is sha256:" in broken(workspace, name)["bento"]
    (folder / "artifact.onnx").write_bytes(logistic())
    assert "content hash is " in broken(workspace, name)["bento"]


def test_the_whole_digest_of_a_bento_counts(
    workspace: Workspace, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tag holds 16 of the 64 digits: a release with the same tag may name another image."""
    source = workspace.bento_store / "bentos" / name / "new" / "src"
    (source / "model").mkdir(parents=True)
    (source / "model" / "artifact.onnx").write_bytes(logistic())
    digest = content_hash(source)
    source.parent.rename(source.parent.with_name(digest[:16]))
    for said, holds in ((digest, True), (f"{digest[:16]}{'0' * 48}", False)):
        bento, image = f"{name}:{digest[:16]}", f"wharf.local/{name}@sha256:{said}"
        set_facts(workspace, name, 1, bento=bento, image=image)
        write(workspace, replace(released(workspace, name), bento=bento, image=image))
        found = broken(workspace, name)
        assert found == {} if holds else "the bento in the store: image is " in found["bento"]
        capsys.readouterr()
        assert main(["lineage", name, "--env", "dev"]) == (0 if holds else 3)
        assert ("every link holds" in capsys.readouterr().out) is holds


def test_the_release_on_the_remote_is_the_one_that_counts(workspace: Workspace, name: str, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--bare", str(workspace.root), "origin.git")
    git(workspace.root, "remote", "add", "origin", str(tmp_path / "origin.git"))
    (workspace.root / path_of("dev", name)).write_text("version: broken\n")
    found = lineage(workspace, name, "dev")
    assert found.verified and found.links[0].detail.startswith("origin: commit ")


def test_what_does_not_exist_is_a_mistake(workspace: Workspace, name: str) -> None:
    with pytest.raises(Mistake, match="no model 'nothing'"):
        lineage(workspace, "nothing", "dev")
    with pytest.raises(Mistake, match="no environment 'stagin' \\(did you mean 'staging'"):
        lineage(workspace, name, "stagin")
    with pytest.raises(Mistake, match=f"'{name}' is not released in staging"):
        lineage(workspace, name, "staging")


def test_mlflow_down_is_not_a_broken_link(workspace: Workspace, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["lineage", name, "--env", "dev"]) == 4


def test_the_command_imports_nothing_heavy() -> None:
    code = "import ci.lineage, sys; print([m for m in ('mlflow', 'sklearn', 'pandas', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
