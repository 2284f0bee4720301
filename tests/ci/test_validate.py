"""`wharf validate` on whole trees: what passes, and one fault for each rule."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest

from ci import cli, schemas
from ci.errors import Mistake
from ci.render import render_all, write
from ci.shell import git
from ci.validate import check, validate
from ci.validation import objects
from tests.ci.gitops_tree import FIXTURES, add_model, commit, expected, make_tree, pin, put, release_all
from tests.registry_double import RegistryDouble, registry_double


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Generator[RegistryDouble]:
    with registry_double() as double:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", double.url)
        yield double


@pytest.fixture
def tree(tmp_path: Path, registry: RegistryDouble) -> Path:
    """`tumor` in dev, staging and prod, `wine` in dev."""
    root = make_tree(tmp_path / "repository", "tumor", "wine")
    tumor, wine = registry.add("tumor", 1), registry.add("wine", 1)
    release_all(root, *[pin(tumor, name) for name in ("dev", "staging", "prod")], pin(wine, "dev"))
    return root


def edit(root: Path, path: str, old: str, new: str) -> None:
    text = (root / path).read_text()
    assert old in text
    (root / path).write_text(text.replace(old, new))


def wharf(root: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.chdir(root)
    return cli.main(list(words))


def test_a_good_tree(tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert wharf(tree, monkeypatch, "validate") == 0
    said = capsys.readouterr()
    assert said.out.startswith("checked 2 models, 3 environments, 4 releases, 24 manifests, ")
    assert "ERROR" not in said.err


def test_faults_are_lines_and_code_3(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    edit(tree, "models/tumor/model.yaml", "task: regression", "taks: regression")
    assert wharf(tree, monkeypatch, "validate") == 3
    said = capsys.readouterr()
    assert "ERROR  models/tumor/model.yaml: taks: unknown key (did you mean 'task'?)" in said.err
    assert said.out == ""
    assert wharf(tree, monkeypatch, "validate", "--json") == 3
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is False
    assert "models/tumor/model.yaml: task: is missing" in found["faults"]
    assert found["releases"] == 4


def test_broken_yaml_in_a_spec(tree: Path) -> None:
    edit(tree, "models/tumor/model.yaml", "owner: someone", "owner: [someone")
    assert [fault.split(": ")[0:2] for fault in validate(tree)] == [["models/tumor/model.yaml:4:5", "not valid YAML"]]


@pytest.mark.parametrize("value", ["2024-99-99", "!!timestamp soon", "!!bool perhaps", "!!int many", "0x_"])
def test_values_that_do_not_exist_are_faults(tree: Path, value: str) -> None:
    """PyYAML raises anything but its own error for them."""
    edit(tree, "models/wine/model.yaml", "owner: someone", f"owner: {value}")
    edit(tree, "gitops/environments/dev.yaml", "max: 2", f"max: {value}")
    (tree / "gitops/extra.yaml").write_text(f"kind: {value}\n")
    (tree / "gitops/releases/dev/tumor.yaml").write_text(f"model: {value}\n")
    faults = validate(tree)
    broken = {fault.split(":")[0] for fault in faults if "not valid YAML" in fault}
    assert broken == {
        "models/wine/model.yaml",
        "gitops/environments/dev.yaml",
        "gitops/extra.yaml",
        "gitops/releases/dev/tumor.yaml",
    }


def test_a_file_that_is_not_text(tree: Path) -> None:
    for path in ("models/wine/model.yaml", "gitops/releases/dev/tumor.yaml", "gitops/rendered/dev/wine/service.yaml"):
        (tree / path).write_bytes(b"\xff\xfe")
    faults = validate(tree)
    assert any(fault.startswith("models/wine/model.yaml: is not UTF-8 text") for fault in faults)
    assert "gitops/releases/dev/tumor.yaml: is not UTF-8 text" in faults


def test_broken_environments_do_not_hide_the_rest(tree: Path) -> None:
    edit(tree, "gitops/environments/dev.yaml", "after: null", "after: prod")
    edit(tree, "models/wine/model.yaml", "task: regression", "task: regresion")
    faults = validate(tree)
    assert "gitops/environments/dev.yaml: after: goes in a circle and never starts at the first environment" in faults
    assert any(fault.startswith("models/wine/model.yaml: task: 'regresion' is not one of") for fault in faults)


@pytest.mark.parametrize("part", ["models/tumor/data.py", "models/tumor/train.py", "bentos/tumor/service.py"])
def test_a_model_without_one_of_its_parts(tree: Path, part: str) -> None:
    (tree / part).unlink()
    assert [fault.split(" (")[0] for fault in validate(tree)] == [f"{part}: is missing"]


@pytest.mark.parametrize(
    ("name", "said"), [("agent", "is the name of a part"), ("metrics", "is the name of bentos/metrics.py")]
)
def test_a_model_with_the_name_of_a_module(tree: Path, name: str, said: str) -> None:
    add_model(tree, name)
    (tree / "bentos/metrics.py").write_text("")
    (fault,) = validate(tree)
    assert fault.startswith(f"models/{name}/model.yaml: name: '{name}' {said}")


@pytest.mark.parametrize("path", ["bentos/serving.py", "bentos/tumor/service.py", "models/wine/data.py"])
def test_code_that_python_cannot_read(tree: Path, path: str) -> None:
    (tree / path).write_text("import os\n\ndef broken(:\n")
    wanted = [f"{path}:3: not valid Python: invalid syntax"]
    assert validate(tree) == wanted
    assert validate(tree, changed="HEAD") == wanted
    commit(tree, "Broken")
    assert validate(tree) == wanted
    assert validate(tree, changed="HEAD") == []  # nothing of it changed
    (tree / path).write_bytes(b"x = '\0'\n")
    (fault,) = validate(tree, changed="HEAD")
    assert fault.startswith(path) and "not valid Python: " in fault


def test_a_service_without_its_model(tree: Path) -> None:
    (tree / "bentos/tumr").mkdir()
    (tree / "bentos/tumr/service.py").write_text("service = None\n")
    assert validate(tree) == ["bentos/tumr/: there is no model 'tumr' (add models/tumr/model.yaml or remove it)"]


def test_a_release_of_a_removed_model(tree: Path) -> None:
    for path in (tree / "models/wine").iterdir():
        path.unlink()
    (tree / "bentos/wine/service.py").unlink()
    assert validate(tree) == ["gitops/releases/dev/wine.yaml: there is no model 'wine' (models/wine/model.yaml)"]


def test_a_release_of_an_unknown_environment(tree: Path) -> None:
    (tree / "gitops/releases/stagin").mkdir()
    edit(tree, "gitops/releases/dev/wine.yaml", "environment: dev", "environment: stagin")
    (tree / "gitops/releases/dev/wine.yaml").rename(tree / "gitops/releases/stagin/wine.yaml")
    faults = validate(tree)
    line = "gitops/releases/stagin/wine.yaml: there is no environment 'stagin' (did you mean 'staging'?)"
    assert line in faults
    assert all(fault.startswith("gitops/rendered/dev/wine/") for fault in faults if fault != line)


@pytest.mark.parametrize("path", sorted((FIXTURES / "invalid/releases").glob("*.yaml")), ids=lambda path: path.stem)
def test_invalid_releases(tree: Path, path: Path) -> None:
    (tree / "gitops/releases/dev/tumor.yaml").write_text(path.read_text())
    faults = validate(tree)
    assert any(fault.startswith(expected(path)) for fault in faults), faults


@pytest.mark.parametrize("path", sorted((FIXTURES / "invalid/manifests").glob("*.yaml")), ids=lambda path: path.stem)
def test_invalid_manifests(path: Path) -> None:
    faults = objects.text_faults("gitops/root.yaml", path.read_text())
    assert len(faults) == 1, faults
    assert expected(path) in faults[0]
    assert faults[0].startswith("gitops/root.yaml:")


@pytest.mark.parametrize("path", sorted((FIXTURES / "valid/manifests").glob("*.yaml")), ids=lambda path: path.stem)
def test_valid_manifests(path: Path) -> None:
    assert objects.text_faults("gitops/root.yaml", path.read_text()) == []


def test_manifests_of_people_are_checked_too(tree: Path) -> None:
    (tree / "gitops/projects").mkdir()
    text = (FIXTURES / "invalid/manifests/tag.yaml").read_text()
    (tree / "gitops/projects/a.yaml").write_text(text)
    (tree / "gitops/root.yaml").write_text("apiVersion: argoproj.io/v1alpha1\nkind: Applicatoin\nmetadata: {name: a}\n")
    faults = validate(tree)
    assert any(fault.startswith("gitops/projects/a.yaml: spec.template.spec.containers.0.image: ") for fault in faults)
    assert any("gitops/root.yaml: kind: there is no schema for argoproj.io/v1alpha1" in fault for fault in faults)
    assert len(faults) == 2


def test_custom_kinds_come_from_their_definitions() -> None:
    folder = FIXTURES / "crds"
    good = {
        "apiVersion": "example.org/v1",
        "kind": "Gadget",
        "metadata": {"name": "a"},
        "spec": {"size": 3, "port": "http", "free": {"anything": 1}, "labels": {"a": "b"}},
    }
    assert schemas.faults(good, folder) == []
    assert schemas.faults(good) != []  # without its definition
    bad = {**good, "spec": {"size": "3", "prt": 80, "labels": {"a": 1}}}
    assert sorted(schemas.faults(bad, folder)) == [
        "spec.labels.a: must be of type string, not 1",
        "spec.prt: unknown field (did you mean 'port'?)",
        "spec.size: must be of type integer, not '3'",
    ]
    assert schemas.faults({**good, "spec": {}}, folder) == ["spec.size: is missing"]
    assert schemas.faults({**good, "extra": 1}, folder) == ["extra: unknown field"]


def test_rendered_must_be_a_fresh_render(tree: Path) -> None:
    folder = "gitops/rendered/dev/wine"
    edit(tree, f"{folder}/horizontalpodautoscaler.yaml", "maxReplicas: 2", "maxReplicas: 20")
    (tree / f"{folder}/service.yaml").unlink()
    (tree / f"{folder}/extra.yaml").write_text("apiVersion: v1\n")
    (tree / f"{folder}/serviceaccount.yaml").write_text(
        (tree / f"{folder}/serviceaccount.yaml").read_text() + "secret: true\n"
    )
    hint = "(run `wharf render` and commit what it writes)"
    faults = validate(tree)
    at = (tree / f"{folder}/horizontalpodautoscaler.yaml").read_text().split("\n").index("  maxReplicas: 20") + 1
    assert f"{folder}/service.yaml: is missing {hint}" in faults
    assert f"{folder}/extra.yaml: is not part of a fresh render {hint}" in faults
    assert (
        f"{folder}/horizontalpodautoscaler.yaml: line {at}: is 'maxReplicas: 20', "
        f"a fresh render gives 'maxReplicas: 2' {hint}"
    ) in faults
    assert f"{folder}/serviceaccount.yaml: secret: unknown field (did you mean 'secrets'?)" in faults
    write(tree, render_all(tree))
    assert validate(tree) == []


def test_a_rendering_without_a_release(tree: Path) -> None:
    (tree / "gitops/releases/dev/wine.yaml").unlink()
    faults = validate(tree)
    assert len(faults) == 6
    assert all(fault.split(": ")[1].startswith("belongs to no release") for fault in faults)


def test_an_environment_that_changed_needs_a_render(tree: Path) -> None:
    edit(tree, "gitops/environments/dev.yaml", "max: 2", "max: 3")
    faults = validate(tree)
    assert {fault.split(":")[0] for fault in faults} == {
        f"gitops/rendered/dev/{model}/horizontalpodautoscaler.yaml" for model in ("tumor", "wine")
    }


@pytest.mark.parametrize(
    "path", ["gitops/releases/README.md", "gitops/releases/dev/wine.yml", "gitops/rendered/dev/x.yaml"]
)
def test_strange_files_in_the_folders_of_the_machine(tree: Path, path: str) -> None:
    (tree / path).write_text("x: 1\n")
    assert validate(tree) == [f"{path}: does not belong here: only wharf writes in this folder (remove it)"]


def test_a_link_out_of_the_tree_is_not_followed(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.yaml").write_text("password: not shown\n")
    (tree / "gitops/releases/dev/wine.yaml").unlink()
    (tree / "gitops/releases/dev/wine.yaml").symlink_to(tmp_path / "outside.yaml")
    assert validate(tree) == ["gitops/releases/dev/wine.yaml: is a symbolic link (keep the file itself here)"]


@pytest.mark.parametrize("path", ["bentos/util.py", "ci/settings.py", "notes.txt"])
def test_no_link_is_taken_wherever_it_stands(tree: Path, tmp_path: Path, path: str) -> None:
    """What stands in bentos/ is copied into every bento."""
    (tmp_path / "outside").write_text("aws_secret_access_key\n")
    (tree / path).parent.mkdir(exist_ok=True)
    (tree / path).symlink_to(tmp_path / "outside")
    wanted = [f"{path}: is a symbolic link (keep the file itself here)"]
    assert validate(tree) == wanted
    assert validate(tree, changed="HEAD") == wanted


# the registry


def test_a_version_that_does_not_exist(tree: Path, registry: RegistryDouble) -> None:
    del registry.versions["wine", 1]
    assert validate(tree) == [
        "gitops/releases/dev/wine.yaml: version: model 'wine' has no version 1 in the registry; it has none"
    ]


@pytest.mark.parametrize("fact", ["run", "artifact", "evidence", "data", "commit"])
def test_a_fact_that_is_not_the_registrys(tree: Path, registry: RegistryDouble, fact: str) -> None:
    tags = registry.versions["wine", 1]
    key = next(name for name in tags if name.startswith(f"wharf.{fact}"))
    tags[key] = "0" * len(tags[key])
    (fault,) = validate(tree)
    assert fault.startswith(f"gitops/releases/dev/wine.yaml: {fact}: is ")
    assert "the registry says " in fault


def test_a_version_that_did_not_pass(tree: Path, registry: RegistryDouble) -> None:
    registry.versions["wine", 1]["wharf.verdict"] = "refused"
    assert validate(tree) == [
        "gitops/releases/dev/wine.yaml: version: 1 did not pass the gate, its verdict is 'refused'"
    ]


def test_no_registry_no_pass(tree: Path, registry: RegistryDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    (fault,) = validate(tree)
    assert fault.startswith("gitops/releases/: cannot be checked against the registry: MLflow at http://127.0.0.1:9")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (fault,) = validate(tree)
    assert "no MLflow server is known" in fault


def test_each_version_is_asked_for_once(tree: Path, registry: RegistryDouble) -> None:
    registry.calls.clear()
    assert validate(tree) == []
    assert registry.calls == ["GET /api/2.0/mlflow/model-versions/get"] * 2


def test_an_image_that_the_registry_does_not_name(tree: Path, registry: RegistryDouble) -> None:
    """What is released keeps its image when the version is built anew; nothing else may have another one."""
    digest = "f" * 64
    registry.versions["tumor", 1]["wharf.bento"] = f"tumor:{digest[:16]}"
    registry.versions["tumor", 1]["wharf.image"] = f"wharf.local/tumor@sha256:{digest}"
    assert validate(tree) == []
    facts = registry.add("wine", 2)
    put(tree, replace(pin(facts, "dev"), bento=f"wine:{digest[:16]}", image=f"wharf.local/wine@sha256:{digest}"))
    (fault,) = validate(tree)
    assert fault == (
        f"gitops/releases/dev/wine.yaml: image: is wharf.local/wine@sha256:{digest}, "
        f"the registry says {facts.image} for version 2"
    )


def test_evidence_of_a_changed_release_is_read(tree: Path, registry: RegistryDouble) -> None:
    facts = registry.add("wine", 2)
    base = git(tree, "rev-parse", "HEAD")
    release_all(tree, pin(facts, "dev"))
    assert validate(tree, changed=base) == []
    path = f"{facts.run}/evidence/evidence.json"
    registry.artifacts[path] = registry.artifacts[path].replace(b"0.99", b"0.98")
    (fault,) = validate(tree, changed=base)
    assert fault.startswith(f"gitops/releases/dev/wine.yaml: version: evidence of run {facts.run} ('wine'): sha256 ")


@pytest.mark.parametrize(("key", "value"), [("verdict", "refused"), ("run", "0" * 32), ("artifact_sha256", "0" * 64)])
def test_evidence_must_say_passed_and_be_of_that_run(
    tree: Path, registry: RegistryDouble, key: str, value: str
) -> None:
    good = json.loads(registry.artifacts[f"{registry.versions['wine', 1]['wharf.run']}/evidence/evidence.json"])
    first = registry.add("wine", 2)
    evidence = good | {"run": first.run, "artifact_sha256": first.artifact} | {key: value}
    facts = registry.add("wine", 2, evidence=evidence)
    release_all(tree, pin(facts, "dev"))
    (fault,) = validate(tree, changed="HEAD~1")
    assert fault.startswith("gitops/releases/dev/wine.yaml: version: the evidence of version 2 ")
    assert value in fault


# the order of environments


def test_nothing_is_in_prod_that_was_not_in_staging(tree: Path, registry: RegistryDouble) -> None:
    facts = registry.add("tumor", 2)
    release_all(tree, pin(facts, "dev"), pin(facts, "prod"))
    assert validate(tree) == [
        "gitops/releases/prod/tumor.yaml: version 2 was never in staging, and prod comes after it "
        "(`wharf promote tumor --to staging --version 2` first)"
    ]


def test_what_was_in_staging_once_may_stay_in_prod(tree: Path, registry: RegistryDouble) -> None:
    second = registry.add("tumor", 2)
    release_all(tree, pin(second, "dev"), pin(second, "staging"))
    assert validate(tree) == []
    (tree / "gitops/releases/staging/tumor.yaml").unlink()
    write(tree, render_all(tree))
    commit(tree, "Take it out")
    assert validate(tree) == []


def test_the_same_version_with_another_image_was_not_in_staging(tree: Path, registry: RegistryDouble) -> None:
    digest = "e" * 64
    image = {"bento": f"tumor:{digest[:16]}", "image": f"wharf.local/tumor@sha256:{digest}"}
    facts = registry.add("tumor", 1, **image)
    release_all(tree, replace(pin(facts, "prod"), **image))
    assert validate(tree) == [
        "gitops/releases/prod/tumor.yaml: version 1 was in staging with another bento and image (promote it again)"
    ]


def test_a_history_that_is_cut_off_proves_nothing(tree: Path, registry: RegistryDouble, tmp_path: Path) -> None:
    release_all(tree, pin(registry.add("tumor", 2), "dev"), pin(registry.add("tumor", 2), "staging"))
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{tree}", "shallow")
    (fault,) = validate(tmp_path / "shallow")
    assert fault.startswith("gitops/releases/prod/tumor.yaml: whether version 1 was in staging cannot be told")
    assert "fetch-depth: 0" in fault


def test_a_tree_without_git_is_checked_too(tree: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(tree), "plain")
    for path in sorted((tmp_path / "plain/.git").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "plain/.git").rmdir()
    assert validate(tmp_path / "plain") == []
    with pytest.raises(Mistake, match="no revision 'HEAD~1' to compare with"):
        validate(tmp_path / "plain", changed="HEAD~1")


def test_many_files_are_checked_by_several_processes(
    tree: Path, registry: RegistryDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same rules, same faults, in the same order."""
    monkeypatch.setattr("ci.validate._PARALLEL_FROM", 0)
    assert validate(tree) == []
    edit(tree, "models/tumor/model.yaml", "owner: someone", "owner: 3")
    (tree / "gitops/rendered/dev/wine/service.yaml").unlink()
    faults = check(tree).faults
    assert faults[0].startswith("models/tumor/model.yaml: owner: must be text, not int 3")
    assert len(faults) == 2


def test_a_new_model_needs_no_release(tree: Path) -> None:
    add_model(tree, "barley")
    assert validate(tree) == []
