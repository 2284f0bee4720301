"""What the agent says when git cannot be read, and when what git says cannot be applied: two different faults."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any, cast

import pytest

from ci.local.agent import Agent, folder
from ci.workspace import Workspace
from tests.ci.local.fakes import Origin


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def looked(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, fault: OSError | None) -> Agent:
    """Return an agent after one look at the branch in which applying it ended with `fault`."""
    folder(workspace).mkdir(parents=True)

    async def apply(self: Agent, revision: str, wanted: Any) -> None:
        if fault:
            raise fault

    async def look() -> Agent:
        agent = Agent(workspace, cast(Any, None), cast(Any, None))
        await agent._reread()
        return agent

    monkeypatch.setattr(Agent, "_apply", apply)
    return asyncio.run(look())


def test_a_revision_that_cannot_be_applied_is_not_blamed_on_git(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = Origin(workspace.state).put("tumor", "dev", 1)
    agent = looked(workspace, monkeypatch, OSError(errno.EMFILE, "Too many open files"))
    assert agent.problem == f"revision {revision[:12]} cannot be applied: [Errno 24] Too many open files"
    assert agent.revision == ""  # so that the next look tries again


def test_a_missing_branch_is(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "origin.git has no readable branch main" in looked(workspace, monkeypatch, None).problem


def test_nothing_is_wrong(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    Origin(workspace.state).put("tumor", "dev", 1)
    assert looked(workspace, monkeypatch, None).problem == ""
