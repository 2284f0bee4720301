"""Promotions and rollbacks against the real validation: machine commits pass, everything else is refused in words."""

from __future__ import annotations

import json
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from ci.errors import Refusal
from ci.files import sha256_bytes
from ci.git import remote
from ci.mlflow_api.rest import RestStore
from ci.promote import promote
from ci.rollback import rollback
from ci.shell import CommandFailed, git
from ci.workspace import Workspace
from tests.ci.local_target import main_of, push, released, save, set_up
from tests.registry_double import RegistryDouble, registry_double

pytestmark = pytest.mark.slow


@pytest.fixture
def registry() -> Generator[RegistryDouble]:
    with registry_double() as double:
        yield double


@pytest.fixture
def home(workspace: Workspace, registry: RegistryDouble) -> Path:
    """An origin judged by the installed `ci`; one model keeps each judgement short."""
    for folder in workspace.models.iterdir():
        if folder.is_dir() and folder.name != "tumor":
            shutil.rmtree(folder)
    save(workspace, "Only tumor")
    return set_up(workspace, registry, real=True)


def version(home: Path, environment: str) -> int | None:
    release = released(home, environment, "tumor")
    return release.version if release else None


def test_the_way_of_a_version_through_all_environments_and_back(
    workspace: Workspace, home: Path, registry: RegistryDouble
) -> None:
    for number in (1, 2):
        registry.add("tumor", number)
        for environment in ("dev", "staging", "prod"):
            assert promote(workspace, "tumor", environment).version == number
    assert rollback(workspace, "tumor", "prod").version == 1
    assert [version(home, name) for name in ("dev", "staging", "prod")] == [2, 2, 1]
    git(workspace.root, "pull", "--quiet", "wharf", "main")
    new = save(workspace, "A person's commit on top", **{"README.md": "mine"})
    push(workspace)
    assert main_of(home) == new


def test_a_release_by_hand_is_refused(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    registry.add("tumor", 1)
    promote(workspace, "tumor", "dev")
    before = main_of(home)
    git(workspace.root, "pull", "--quiet", "wharf", "main")
    path = workspace.root / "gitops/releases/dev/tumor.yaml"
    path.write_text(path.read_text().replace("version: 1", "version: 9"))
    save(workspace, "By hand")
    with pytest.raises(CommandFailed) as caught:
        push(workspace)
    said = "\n".join(remote.remote_lines(caught.value.stderr))
    assert "gitops/releases/dev/tumor.yaml" in said
    assert "without a Wharf-Release trailer" in said
    assert main_of(home) == before


def test_a_registry_that_is_down_or_forgot_refuses(workspace: Workspace, home: Path, registry: RegistryDouble) -> None:
    registry.add("tumor", 1)
    registry.add("tumor", 2)
    promote(workspace, "tumor", "dev", version=1)
    promote(workspace, "tumor", "dev", version=2)
    before = main_of(home)
    registry.versions["tumor", 1]["wharf.verdict"] = "refused"
    with pytest.raises(Refusal, match="did not pass the gate"):
        rollback(workspace, "tumor", "dev")
    registry.close()
    with pytest.raises(Refusal, match="cannot be checked against the registry"):
        rollback(workspace, "tumor", "dev")
    assert main_of(home) == before


def test_with_a_real_mlflow(
    workspace: Workspace, home: Path, registry: RegistryDouble, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The double's facts of one version, put into a real server: promote and the hook read them there."""
    known = registry.add("tumor", 1)
    store = RestStore(mlflow_uri)

    def call(endpoint: str, **fields: object) -> dict[str, Any]:
        answer = requests.post(f"{mlflow_uri}/api/2.0/mlflow/{endpoint}", json=fields, timeout=30)
        answer.raise_for_status()
        return dict(answer.json())

    experiment = call("experiments/create", name=f"promote-{uuid4().hex}")["experiment_id"]
    run = store.run(call("runs/create", experiment_id=experiment)["run"]["info"]["run_id"])
    assert run is not None
    call("runs/update", run_id=run.id, status="FINISHED")
    store.set_run_tags(
        run.id, {"wharf.model": "tumor", "wharf.state": "complete", "wharf.artifact_sha256": known.artifact}
    )
    document = json.loads(registry.artifacts[f"{known.run}/evidence/evidence.json"]) | {"run": run.id}
    content = json.dumps(document).encode()
    digest = sha256_bytes(content)
    run = store.run(run.id)
    assert run is not None
    store.write(run, "evidence/evidence.json", content)
    tags = registry.versions["tumor", 1] | {"wharf.run": run.id, "wharf.evidence_sha256": digest}
    store.ensure_model("tumor", "Tumours", {})
    number = store.create_version("tumor", run, "run", tags).number
    registry.close()  # nobody asks the double from here on
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    made = promote(workspace, "tumor", "dev", version=number)
    assert main_of(home) == made.commit
    release = released(home, "dev", "tumor")
    assert release is not None
    assert (release.version, release.run, release.evidence) == (number, run.id, f"sha256:{digest}")
    store.set_version_tags("tumor", number, {"wharf.verdict": "refused"})
    with pytest.raises(Refusal, match="did not pass the gate"):
        promote(workspace, "tumor", "staging")
