"""What README.md and docs/ say can be done: their links lead somewhere, and their commands exist."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import shutil
import subprocess

import pytest

from ci.cli import COMMANDS
from tests.mlflow_server import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGE = {page.relative_to(ROOT).as_posix(): page.read_text() for page in PAGES}


def commands(text: str) -> list[str]:
    """Return each `wharf …` of a page: lines of code blocks, and code between backquotes that has an option."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    found = [line for block in blocks for line in re.findall(r"^(?:\$ )?(?:\S*/)?(wharf .*)", block, re.M)]
    inline = re.findall(r"`(wharf [^`\n]*)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    return [line.split("  ")[0].split(" # ")[0].split(" | ")[0].strip() for line in [*found, *inline]]


def faults(line: str) -> list[str]:
    """Return what is wrong with one command: no such command, or no such option of it."""
    _, *words = shlex.split(line)
    if not words or words == ["--help"] or words[0].isupper():
        return []
    if words[0] not in COMMANDS:
        return [f"{line}: no command '{words[0]}'"]
    parser = argparse.ArgumentParser()
    importlib.import_module(COMMANDS[words[0]][0]).arguments(parser)
    known = {option for action in parser._actions for option in action.option_strings}
    return [f"{line}: no option {word}" for word in words if word.startswith("-") and word.split("=")[0] not in known]


@pytest.mark.parametrize("page", sorted(PAGE))
def test_relative_links_lead_to_files_of_the_repository(page: str) -> None:
    targets = [target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", PAGE[page]) if ":" not in target]
    missing = [target for target in targets if target and not (ROOT / page).parent.joinpath(target).exists()]
    assert missing == []


@pytest.mark.parametrize("page", sorted(PAGE))
def test_every_command_and_option_exists(page: str) -> None:
    assert [fault for line in commands(PAGE[page]) for fault in faults(line)] == []


def test_the_readme_has_commands_to_check() -> None:
    assert len(commands(PAGE["README.md"])) > 10


@pytest.mark.parametrize("line", ["wharf promot tumor", "wharf promote tumor --too dev"])
def test_a_wrong_command_is_found(line: str) -> None:
    (found,) = [fault for command in commands(f"```sh\n{line}   # why\n```\n") for fault in faults(command)]
    assert found.startswith(f"{line}: no ")


@pytest.mark.parametrize("python", ["/some/python3.11", "/other folder/python3"])
def test_make_installs_for_the_python_that_was_named(python: str) -> None:
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", ".venv/ready", f"PYTHON={python}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    base = python if shutil.which("uv") else ".venv/bin/python"  # made by the line before it
    assert re.search(rf'sync .*--python "{base}"', done.stdout)
    assert python in done.stdout
