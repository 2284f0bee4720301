"""What the agent does when git's answer cannot be read: it says so, keeps what runs and looks again."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import cast

import aiohttp
import pytest

from ci.local.agent import Agent
from ci.local.reconcile import Launcher
from ci.workspace import Workspace


@pytest.mark.parametrize(
    "error",
    [
        subprocess.CalledProcessError(128, ["git", "cat-file"], stderr=b"fatal: it broke"),
        ValueError("month must be in 1..12"),
        IndexError("list index out of range"),
    ],
)
def test_what_cannot_be_read_is_a_problem_and_not_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    async def look() -> str:
        follower = Agent(Workspace(tmp_path), cast(Launcher, None), cast(aiohttp.ClientSession, None))
        await follower._reread()
        return follower.problem

    monkeypatch.setattr("ci.local.agent.git", lambda *_: "1" * 40)
    monkeypatch.setattr("ci.local.agent.Manifests.read", fail)
    assert "origin.git" in asyncio.run(look())
