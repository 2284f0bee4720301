"""The provider `existing` on the cluster of these tests: found by its kubeconfig, reached by a port-forward."""

from __future__ import annotations

import json
import urllib.request

import pytest

from ci.cluster import forward, up
from ci.cluster.existing import Existing
from ci.local import processes
from ci.workspace import Workspace
from tests.cluster.cluster import Cluster

pytestmark = pytest.mark.cluster


def test_a_cluster_that_is_there_tells_its_registry_and_lets_mlflow_be_reached(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.access.kubeconfig))
    workspace = Workspace(cluster.user.clone)
    found = Existing().up(workspace)
    assert (found.provider, found.context) == ("existing", cluster.access.context)
    assert (found.registry, found.push) == ("wharf.local", cluster.access.push), "the cluster declares it (KEP-1755)"

    port = processes.free_port()
    forward.start(workspace, found, up.MLFLOW_NAMESPACE, up.MLFLOW_SERVICE, up.MLFLOW_PORT, port)
    try:
        # An API call, not /health: MLflow refuses names that it was not told of.
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/version", timeout=10) as answer:
            assert answer.read().decode().count(".") == 2
        body = json.dumps({"max_results": 1}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert json.load(answer)["experiments"]
    finally:
        assert forward.stop(workspace)
    assert processes.port_is_free(port)
