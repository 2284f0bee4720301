"""The GitHub workflows: valid, thin, pinned, with the least permissions, and every command they run exists."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ci.cli import COMMANDS
from ci.environments import load_all
from ci.models import PIPELINE
from tests.mlflow_server import ROOT

FOLDER = ROOT / ".github" / "workflows"
FILES = sorted(FOLDER.glob("*.yml"))
MAKEFILE = (ROOT / "Makefile").read_text()


def read(path: Path) -> dict[Any, Any]:
    return yaml.safe_load(path.read_text())


def jobs() -> list[Any]:
    return [pytest.param(job, id=f"{path.stem}-{name}") for path in FILES for name, job in read(path)["jobs"].items()]


def steps() -> list[tuple[str, dict[str, Any]]]:
    return [
        (f"{path.name}: {name}", step)
        for path in FILES
        for name, job in read(path)["jobs"].items()
        for step in job["steps"]
    ]


def test_the_four_workflows_are_there() -> None:
    assert [path.stem for path in FILES] == ["deliver", "promote", "retrain", "validate"]


@pytest.mark.parametrize("path", PIPELINE)
def test_a_change_of_what_decides_a_run_is_delivered(path: str) -> None:
    paths = read(FOLDER / "deliver.yml")[True]["push"]["paths"]  # YAML 1.1 reads the key `on` as true
    assert (ROOT / path).is_file()
    assert any(path == known or (known.endswith("/**") and path.startswith(known[:-2])) for known in paths)


def test_they_follow_githubs_schema() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, *map(str, FILES)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_check_can_fail(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yml"
    broken.write_text(FILES[0].read_text().replace("runs-on:", "run-on:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    assert subprocess.run([*command, str(broken)], capture_output=True).returncode == 1


def test_actions_are_pinned_by_commit_with_the_version_beside_it() -> None:
    pins: dict[str, set[str]] = {}
    for path in FILES:
        for line in re.findall(r"uses:.*", path.read_text()):
            found = re.fullmatch(r"uses: ([\w-]+/[\w-]+)@([0-9a-f]{40}) # (v\d+\.\d+\.\d+)", line)
            assert found, f"{path.name}: {line}"
            pins.setdefault(found[1], set()).add(f"{found[2]} {found[3]}")
    assert all(len(versions) == 1 for versions in pins.values()), f"one action, two versions: {pins}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_permissions_start_at_reading(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        if "permissions" in job:
            assert job["permissions"] == {"contents": "write", "pull-requests": "write"}, name
            opens_pull_requests = re.search(r"wharf (ship|promote|retrain)", str(job["steps"]))
            assert opens_pull_requests, f"{path.name}: {name} writes and needs not"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_runs_do_not_pile_up(path: Path) -> None:
    workflow = read(path)
    assert workflow["concurrency"]["group"]
    # Cut off in the middle, a delivery would be lost; an outdated check is worth nothing.
    assert workflow["concurrency"]["cancel-in-progress"] is (path.stem == "validate")


@pytest.mark.parametrize("job", jobs())
def test_jobs_end_and_run_on_a_named_system(job: dict[str, Any]) -> None:
    assert job["timeout-minutes"] <= 120
    assert re.fullmatch(r"ubuntu-\d\d\.\d\d", job["runs-on"])
    checkout = job["steps"][0]
    assert checkout["uses"].startswith("actions/checkout@")
    if "permissions" not in job:
        assert checkout["with"]["persist-credentials"] is False
    assert len([step for step in job["steps"] if "run" in step]) <= 2, "a job is one or two commands"


def test_every_command_exists_with_its_options() -> None:
    ran: set[str] = set()
    for where, step in steps():
        for line in step.get("run", "").splitlines():
            if line == 'echo "models=$models" >> "$GITHUB_OUTPUT"':
                continue
            command = re.sub(r"^models=\$\((.*)\)$", r"\1", line)
            assert "${{" not in command, f"{where}: an expression in a command can inject one: {line}"
            words = shlex.split(command)
            if words[0] == "make":
                assert re.search(rf"^{re.escape(words[1])}:", MAKEFILE, re.MULTILINE), f"{where}: {line}"
                continue
            assert words[0] == ".venv/bin/wharf", f"{where}: {line}"
            parser = argparse.ArgumentParser()
            importlib.import_module(COMMANDS[words[1]][0]).arguments(parser)
            parser.parse_args(words[2:])
            for variable in re.findall(r"\$(\w+)", command):
                assert variable in step["env"], f"{where}: ${variable} is not set"
            ran.add(words[1])
    assert ran == {"validate", "models", "ship", "promote", "retrain"}


def test_nothing_of_github_is_expanded_inside_a_shell() -> None:
    assert [where for where, step in steps() if "${{" in step.get("run", "")] == []


def test_dispatch_offers_the_environments_after_the_first() -> None:
    inputs = read(FOLDER / "promote.yml")[True]["workflow_dispatch"]["inputs"]  # YAML 1.1 reads `on` as true
    assert inputs["environment"]["options"] == [environment.name for environment in load_all(ROOT)][1:]


def test_the_whole_history_is_there_where_it_is_read() -> None:
    for path in FILES:
        for name, job in read(path)["jobs"].items():
            if re.search(r"wharf (ship|promote|retrain|validate)|--changed", str(job["steps"])):
                assert job["steps"][0]["with"]["fetch-depth"] == 0, f"{path.name}: {name}"


def test_uv_is_the_one_that_the_makefile_installs() -> None:
    wanted = re.search(r"^UV_VERSION := (\S+)", MAKEFILE, re.MULTILINE)
    assert wanted
    used = {step["with"]["version"] for _, step in steps() if "setup-uv" in step.get("uses", "")}
    assert used == {wanted[1]}


def test_the_documented_gitlab_pipeline_follows_its_schema(tmp_path: Path) -> None:
    found = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "ci.md").read_text(), re.DOTALL)
    assert found
    pipeline = tmp_path / ".gitlab-ci.yml"
    pipeline.write_text(found[1])
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.gitlab-ci"]
    done = subprocess.run([*command, str(pipeline)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for job in ("validate", "deliver") for line in yaml.safe_load(found[1])[job]["script"]]
    commands = re.findall(r"\.venv/bin/wharf ([^)|;\n]*)", "\n".join(lines))
    assert len(commands) == 3
    for command in commands:
        words = command.split()
        parser = argparse.ArgumentParser()
        importlib.import_module(COMMANDS[words[0]][0]).arguments(parser)
        parser.parse_args(words[1:])
