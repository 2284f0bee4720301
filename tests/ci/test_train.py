"""Training against a real tracking database: what is recorded, reused, and finished after a crash."""

from __future__ import annotations

import pytest

from ci.train import train
from ci.workspace import Workspace

pytestmark = pytest.mark.slow


def test_trains_and_records(workspace: Workspace, mlflow_db: str) -> None:
    run = train(workspace, "tumor")
    again = train(workspace, "tumor")
    assert again.run_id == run.run_id and again.reused and not run.reused
    assert again.metrics == run.metrics
    print(run)
