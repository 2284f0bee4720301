"""Waiting for the node, with a script that plays kubectl."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ci.cluster.node import bringup
from ci.errors import Unavailable

READY = {"status": {"conditions": [{"type": "Ready", "status": "True", "message": "kubelet is posting ready status"}]}}
NOT_READY = {"status": {"conditions": [{"type": "Ready", "status": "False", "message": "cni plugin not initialized"}]}}


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl whose first answer never comes: the API server has lost etcd for a moment."""
    monkeypatch.setattr(bringup, "_ASK_S", 0.3)
    program = tmp_path / "kubectl"
    program.write_text(f"""#!/bin/sh
if mkdir {tmp_path}/asked 2>/dev/null || [ ! -e {tmp_path}/node ]; then exec sleep 60; fi
cat {tmp_path}/node
""")
    program.chmod(0o755)
    return program


def test_an_api_server_that_does_not_answer_for_a_moment_is_waited_for(kubectl: Path) -> None:
    kubectl.with_name("node").write_text(json.dumps(READY))
    bringup.wait_node([str(kubectl)], 20)
    assert kubectl.with_name("asked").is_dir()


@pytest.mark.parametrize(
    ("answer", "said"), [(NOT_READY, "cni plugin not initialized"), (None, "kubectl had no answer for 0.3 seconds")]
)
def test_what_it_waits_for_in_vain_is_one_line(kubectl: Path, answer: object, said: str) -> None:
    if answer:
        kubectl.with_name("node").write_text(json.dumps(answer))
    with pytest.raises(Unavailable) as raised:
        bringup.wait_node([str(kubectl)], 1)
    assert raised.value.lines == [f"the node is not Ready after 1 seconds: {said}"]
