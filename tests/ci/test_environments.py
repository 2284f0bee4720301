"""Environments: what a file may say, and the order that `after` makes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.environments import Environment, load_all, parse
from ci.errors import Mistake
from tests.ci.gitops_tree import FIXTURES, expected

ROOT = Path(__file__).parents[2]


def write(root: Path, **after: str | None) -> Path:
    """Make environments with these `after`."""
    folder = root / "gitops/environments"
    folder.mkdir(parents=True)
    text = (FIXTURES / "valid/environments/dev.yaml").read_text()
    for name, before in after.items():
        own = text.replace("name: dev", f"name: {name}").replace("after: null", f"after: {before or 'null'}")
        (folder / f"{name}.yaml").write_text(own)
    return root


def faults_of(root: Path) -> list[str]:
    with pytest.raises(Mistake) as caught:
        load_all(root)
    return caught.value.lines


def test_the_environments_of_this_repository_are_in_order() -> None:
    assert [environment.name for environment in load_all(ROOT)] == ["dev", "staging", "prod"]


@pytest.mark.parametrize("path", sorted((FIXTURES / "valid/environments").glob("*.yaml")), ids=lambda path: path.stem)
def test_valid(path: Path) -> None:
    assert isinstance(parse(path.read_text(), f"gitops/environments/{path.name}"), Environment)


@pytest.mark.parametrize("path", sorted((FIXTURES / "invalid/environments").glob("*.yaml")), ids=lambda path: path.stem)
def test_invalid(path: Path) -> None:
    with pytest.raises(Mistake) as caught:
        parse(path.read_text(), "gitops/environments/dev.yaml")
    assert len(caught.value.lines) == 1, caught.value.lines
    assert caught.value.lines[0].startswith(expected(path))


def test_the_order_follows_after_and_not_the_alphabet(tmp_path: Path) -> None:
    write(tmp_path, a="z", m=None, z="m")
    assert [environment.name for environment in load_all(tmp_path)] == ["m", "z", "a"]


def test_two_roots(tmp_path: Path) -> None:
    assert faults_of(write(tmp_path, dev=None, prod=None)) == [
        "gitops/environments/prod.yaml: after: 'dev' is the first one already; name the one before this"
    ]


def test_two_after_the_same(tmp_path: Path) -> None:
    assert faults_of(write(tmp_path, dev=None, prod="dev", staging="dev")) == [
        "gitops/environments/staging.yaml: after: 'prod' comes after 'dev' already; promotion is one line"
    ]


def test_unknown_after(tmp_path: Path) -> None:
    assert faults_of(write(tmp_path, dev=None, prod="stagin", staging="dev")) == [
        "gitops/environments/prod.yaml: after: no environment 'stagin' (did you mean 'staging'?)"
    ]


def test_a_circle(tmp_path: Path) -> None:
    assert faults_of(write(tmp_path, a="b", b="a", dev=None)) == [
        f"gitops/environments/{name}.yaml: after: goes in a circle and never starts at the first environment"
        for name in ("a", "b")
    ]


def test_after_itself(tmp_path: Path) -> None:
    assert "gitops/environments/dev.yaml: after: goes in a circle" in faults_of(write(tmp_path, dev="dev"))[0]


def test_no_environment(tmp_path: Path) -> None:
    assert faults_of(tmp_path) == ["gitops/environments/: holds no environment"]


def test_other_ending(tmp_path: Path) -> None:
    write(tmp_path, dev=None)
    (tmp_path / "gitops/environments/prod.yml").write_text("name: prod")
    assert faults_of(tmp_path) == ["gitops/environments/prod.yml: must end in .yaml"]


def test_not_text(tmp_path: Path) -> None:
    write(tmp_path, dev=None)
    (tmp_path / "gitops/environments/prod.yaml").write_bytes(b"name: \xff\xfe")
    assert faults_of(tmp_path) == ["gitops/environments/prod.yaml: is not UTF-8 text"]


def test_a_namespace_that_is_too_long_names_the_model() -> None:
    text = (FIXTURES / "valid/environments/dev.yaml").read_text() + 'namespace: "models-{team}-{model}-{environment}"\n'
    environment = parse(text, "gitops/environments/dev.yaml")
    assert environment.namespace_of("risk", "tumor") == "models-risk-tumor-dev"
    with pytest.raises(Mistake, match=r"of model 'tumorx+' is not a DNS label"):
        environment.namespace_of("t" * 40, "tumor" + "x" * 20)
