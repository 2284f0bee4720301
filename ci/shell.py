"""Run programs: their output is shown only when they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from ci.errors import WharfError


class CommandFailed(WharfError):
    """A program ended with a code other than 0; `stderr` holds what it said."""

    def __init__(self, command: Sequence[str], code: int, stderr: str) -> None:
        self.command, self.code, self.stderr = list(command), code, stderr
        super().__init__([f"`{' '.join(command)}` ended with {code}", *stderr.strip().splitlines()])


def run(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    timeout: float | None = None,
) -> str:
    """Run `command` and return its standard output.

    `env` is added to this process's environment. Raises CommandFailed when it ends with another code than 0,
    FileNotFoundError when there is no such program, subprocess.TimeoutExpired after `timeout` seconds.
    """
    done = subprocess.run(
        list(command),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise CommandFailed(command, done.returncode, done.stderr or done.stdout)
    return done.stdout


def git(root: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: str | None = None) -> str:
    """Run git in `root` and return its standard output without the last line break."""
    return run(["git", *arguments], cwd=root, env=env, stdin=stdin).removesuffix("\n")
