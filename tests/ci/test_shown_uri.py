"""Addresses that hold a password are shown without it."""

from __future__ import annotations

import pytest

from ci.errors import Unavailable
from ci.git.pull_request import _run
from ci.mlflow_api import client as mlflow_client
from ci.mlflow_api.rest import RestStore
from ci.training import tracking
from ci.workspace import Workspace, shown_uri

ADDRESS = "http://bob:hunter2@127.0.0.1:1"  # wharf:allow-secret - nobody's password


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (ADDRESS, "http://127.0.0.1:1"),
        ("http://bob@host/path?a=b@c", "http://host/path?a=b@c"),
        ("postgresql://bob:p@ss:w@db/mlflow", "postgresql://db/mlflow"),  # wharf:allow-secret
        (f"a request to {ADDRESS}/api failed", "a request to http://127.0.0.1:1/api failed"),
        ("http://host:5000", "http://host:5000"),
        ("sqlite:///a@b.db", "sqlite:///a@b.db"),
    ],
)
def test_user_and_password_are_left_out(text: str, shown: str) -> None:
    assert shown_uri(text) == shown


def test_an_mlflow_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(Unavailable) as raised:
        RestStore(ADDRESS).run("0" * 32)
    assert "http://127.0.0.1:1 does not answer" in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_nor_do_the_messages_of_mlflow_bring_it_back() -> None:
    told = ConnectionError(f"API request to {ADDRESS}/api/2.0/mlflow failed")
    for error in (tracking.unavailable(ADDRESS, str(told)), mlflow_client._unavailable(ADDRESS, told)):
        assert "127.0.0.1:1" in str(error)
        assert "hunter2" not in str(error)


def test_the_link_of_a_pull_request_has_none(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://bob:hunter2@mlflow.example.com/")  # wharf:allow-secret
    assert _run(workspace, "abc") == "[`abc`](https://mlflow.example.com/#/runs/abc)"
