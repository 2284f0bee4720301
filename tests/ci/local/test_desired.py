"""What git wants, read from a real bare repository."""

from __future__ import annotations

from pathlib import Path

import pytest

from ci.local.desired import Desired, Fault, Key, Manifests, from_deployment
from ci.shell import CommandFailed
from tests.ci.local.fakes import Origin, deployment


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    return Origin(tmp_path)


def test_every_model_and_environment_is_read(origin: Origin) -> None:
    origin.put("tumor", "prod", 3)
    revision = origin.put("digits", "dev", 1, EXTRA="x y")
    wanted = Manifests(origin.path).read(revision)
    assert list(wanted) == [Key("dev", "digits"), Key("prod", "tumor")]
    digits = wanted[Key("dev", "digits")]
    assert digits == Desired(
        key=Key("dev", "digits"),
        version=1,
        image=f"wharf.local/digits@sha256:{1:064x}",
        env=(("WHARF_MODEL", "digits"), ("WHARF_VERSION", "1"), ("WHARF_ENVIRONMENT", "dev"), ("EXTRA", "x y")),
        deadline=5.0,
    ), "a variable without a plain value is left out"


def test_what_goes_to_json_comes_back(origin: Origin) -> None:
    desired = from_deployment(Key("dev", "tumor"), deployment("tumor", "dev", 7, A="b"))
    assert Desired.from_json(desired.to_json()) == desired


def test_only_what_a_process_depends_on_changes_the_digest() -> None:
    key = Key("dev", "tumor")
    first, same = deployment("tumor", "dev", 1), deployment("tumor", "dev", 1)
    same["spec"]["replicas"] = 7
    other = deployment("tumor", "dev", 1, A="b")
    assert from_deployment(key, first).digest == from_deployment(key, same).digest
    assert from_deployment(key, first).digest != from_deployment(key, other).digest
    assert from_deployment(key, first).digest != from_deployment(Key("prod", "tumor"), first).digest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: [", "gitops/rendered/dev/tumor/deployment.yaml: not valid YAML"),
        ("kind: Deployment\nx: 2024-99-99", "gitops/rendered/dev/tumor/deployment.yaml: not valid YAML: month must be"),
        ("kind: Service", "gitops/rendered/dev/tumor: has no Deployment, needs one"),
        ("", "gitops/rendered/dev/tumor: has no Deployment, needs one"),
        ("kind: Deployment", "deployment.yaml: not a Deployment of a model: KeyError 'spec'"),
        (
            "kind: Deployment\nspec: {template: {spec: {containers: []}}}",
            "deployment.yaml: not a Deployment of a model: IndexError",
        ),
        (
            "kind: Deployment\nspec: {template: {spec: {containers: [{image: a, env: []}]}}}",
            "deployment.yaml: not a Deployment of a model: KeyError 'WHARF_VERSION'",
        ),
    ],
)
def test_a_broken_manifest_is_a_fault_of_its_application_only(origin: Origin, text: str, message: str) -> None:
    origin.put("digits", "dev", 1)
    origin.put("tumor", "dev", 1)
    origin.files["gitops/rendered/dev/tumor/deployment.yaml"] = text
    wanted = Manifests(origin.path).read(origin.commit())
    fault = wanted[Key("dev", "tumor")]
    assert isinstance(fault, Fault) and message in fault.message
    assert isinstance(wanted[Key("dev", "digits")], Desired)


def test_two_deployments_are_a_fault(origin: Origin) -> None:
    origin.put("tumor", "dev", 1)
    origin.files["gitops/rendered/dev/tumor/more.yaml"] = origin.files["gitops/rendered/dev/tumor/deployment.yaml"]
    fault = Manifests(origin.path).read(origin.commit())[Key("dev", "tumor")]
    assert fault == Fault("gitops/rendered/dev/tumor: has 2 Deployments, needs one")


def test_a_reader_follows_from_revision_to_revision(origin: Origin) -> None:
    manifests = Manifests(origin.path)
    first = origin.put("tumor", "dev", 1)
    second = origin.put("tumor", "dev", 2)
    third = origin.remove("tumor", "dev")
    versions = [
        [d.version for d in manifests.read(r).values() if isinstance(d, Desired)] for r in (first, second, first)
    ]
    assert versions == [[1], [2], [1]]
    assert manifests.read(third) == {}


def test_a_revision_that_is_not_there_raises(origin: Origin) -> None:
    with pytest.raises(CommandFailed):
        Manifests(origin.path).read("0" * 40)
