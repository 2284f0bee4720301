"""`wharf validate` against a real MLflow server: a version that was gated and registered, and its evidence."""

from __future__ import annotations

import pytest

from ci.gate import gate
from ci.registry import facts, register, set_facts
from ci.validate import validate
from ci.workspace import Workspace
from tests.ci import gated
from tests.ci.gitops_tree import commit, pin, put


@pytest.mark.slow
def test_a_real_version_and_its_evidence(
    workspace: Workspace, mlflow_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    name, root = gated.fresh_name(), workspace.root
    gated.add_model(workspace, name)
    for part in (f"models/{name}/data.py", f"models/{name}/train.py", f"bentos/{name}/service.py"):
        (root / part).parent.mkdir(parents=True, exist_ok=True)
        (root / part).write_text("")
    base = commit(root, "A model")
    run = gated.add_run(workspace, mlflow_uri, name)
    assert gate(workspace, name, run.id).passed
    version = register(workspace, name, run.id)
    digest = "5" * 64
    set_facts(workspace, name, version, bento=f"{name}:{digest[:16]}", image=f"wharf.local/{name}@sha256:{digest}")
    release = pin(facts(workspace, name, version), "dev")
    put(root, release)
    commit(root, "Release", release)
    assert validate(root, changed=base) == []
    path = root / "gitops/releases/dev" / f"{name}.yaml"
    path.write_text(path.read_text().replace("version: 1", "version: 2"))
    faults = validate(root, changed=base)
    missing = f"gitops/releases/dev/{name}.yaml: version: model '{name}' has no version 2 in the registry"
    assert any(fault.startswith(missing) for fault in faults), faults
