"""Where the tracking server is, also behind a company's proxy."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from requests.utils import should_bypass_proxies

from ci.errors import Unavailable
from ci.workspace import Workspace, tracking_uri

CLUSTER_IP = "http://10.97.12.34:5000"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    for name in ("http_proxy", "all_proxy", "no_proxy", "MLFLOW_TRACKING_URI"):
        for each in (name, name.upper()):
            monkeypatch.setenv(each, "")  # so that what the code sets is undone behind the test
            monkeypatch.delenv(each)
    found = Workspace(tmp_path)
    found.state.mkdir()
    (found.state / "platform.json").write_text(json.dumps({"mlflow": {"url": CLUSTER_IP}}))
    return found


def test_our_own_server_is_reached_without_the_proxy(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "intern.example")
    assert not should_bypass_proxies(CLUSTER_IP, None)
    for _ in range(2):
        assert tracking_uri(workspace) == CLUSTER_IP
        assert should_bypass_proxies(CLUSTER_IP, None)
        assert not should_bypass_proxies("https://mlflow.example", None)
        assert os.environ["no_proxy"] == "intern.example,10.97.12.34"


def test_without_a_proxy_nothing_is_set(workspace: Workspace) -> None:
    assert tracking_uri(workspace) == CLUSTER_IP
    assert "no_proxy" not in os.environ


def test_a_server_of_the_users_own_is_reached_as_the_user_wants(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example")
    assert tracking_uri(workspace) == "https://mlflow.example"
    assert "no_proxy" not in os.environ


@pytest.mark.parametrize("text", ["", "{}", '{"mlflow": null}'])
def test_without_a_server_it_is_said_what_to_do(workspace: Workspace, text: str) -> None:
    (workspace.state / "platform.json").write_text(text)
    with pytest.raises(Unavailable, match="no MLflow server is known"):
        tracking_uri(workspace)
