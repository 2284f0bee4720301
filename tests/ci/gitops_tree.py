"""A small repository with models, environments and releases, for the tests of render and validate."""

from __future__ import annotations

import shutil
from pathlib import Path

from ci import release
from ci.registry import VersionFacts
from ci.release import Release, path_of
from ci.render import render_changed
from ci.shell import git

ROOT = Path(__file__).parents[2]
FIXTURES = ROOT / "tests/fixtures"

SPEC = """name: {name}
description: A model for tests.
owner: someone
team: diagnostics
task: regression
data:
  source: {{kind: builtin}}
  target: y
  columns: [{{name: x}}]
gate:
  metrics: {{rmse: {{max: 1}}}}
"""


def expected(path: Path) -> str:
    """Return what the first line of an invalid fixture says that the fault must be."""
    first = path.read_text().split("\n", 1)[0]
    assert first.startswith("# expect: "), path
    return first.removeprefix("# expect: ")


def make_tree(root: Path, *models: str) -> Path:
    """Make a repository with these models and the environments of this one, committed."""
    shutil.copytree(ROOT / "gitops/environments", root / "gitops/environments")
    for model in models:
        add_model(root, model)
    git(root, "init", "--quiet", "--initial-branch=main")
    git(root, "config", "user.name", "Tests")
    git(root, "config", "user.email", "tests@localhost")
    git(root, "config", "gc.auto", "0")
    (root / ".gitignore").write_text(".wharf/\n")
    commit(root, "Start")
    return root


def add_model(root: Path, name: str) -> None:
    """Write the files that belong to a model."""
    for path, text in {
        f"models/{name}/model.yaml": SPEC.format(name=name),
        f"models/{name}/data.py": "def load(source): ...\n",
        f"models/{name}/train.py": "def fit(frame, params, seed): ...\n",
        f"bentos/{name}/service.py": "service = None\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


def pin(facts: VersionFacts, environment: str) -> Release:
    """Return the release of a version of the registry."""
    assert facts.bento and facts.image
    return Release(
        model=facts.model,
        environment=environment,
        version=facts.version,
        run=facts.run,
        bento=facts.bento,
        image=facts.image,
        artifact=f"sha256:{facts.artifact}",
        evidence=f"sha256:{facts.evidence}",
        data=f"sha256:{facts.data}",
        commit=facts.commit,
    )


def put(root: Path, *pins: Release) -> None:
    """Write releases and their rendering, as promote does."""
    for one in pins:
        path = root / path_of(one.environment, one.model)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(release.dump(one))
    for one in pins:
        files = render_changed(root, [(one.environment, one.model)])
        for path, text in files.items():
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(text)


def commit(root: Path, message: str, *pins: Release) -> str:
    """Commit everything, with the trailers of `pins`; return the commit."""
    trailers = "\n".join(f"Wharf-Release: {one.environment}/{one.model}@{one.version}" for one in pins)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--allow-empty", "--message", f"{message}\n\n{trailers}".strip())
    return git(root, "rev-parse", "HEAD")


def release_all(root: Path, *pins: Release) -> str:
    """Write and commit releases one after the other, as promotions do; return the last commit."""
    last = ""
    for one in pins:
        put(root, one)
        last = commit(root, f"Release {one.model}", one)
    return last
