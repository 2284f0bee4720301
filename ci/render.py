"""`wharf render`: write the manifests that follow from releases, specs and environments.

`gitops/rendered/<environment>/<model>/*.yaml`, one file an object, because a reviewer then sees by the file's name
what a change touches: a promotion changes `deployment.yaml` alone. And what Argo CD is bootstrapped from, which no
promotion changes: see `ci.rendering.argocd`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ci import release
from ci.console import step
from ci.environments import Environment, load_all
from ci.errors import Mistake, Refusal, did_you_mean
from ci.files import write_atomic
from ci.release import Release
from ci.rendering import argocd, manifests
from ci.rendering.manifest_text import dump
from ci.workspace import Workspace, load_spec
from models.spec import ModelSpec

RELEASES = "gitops/releases"
RENDERED = argocd.RENDERED
_SHOWN = 100
_HEADER = "# Written by `wharf render` from the release, model.yaml and the environment; edit nothing here by hand.\n"


@dataclass(frozen=True)
class Changes:
    """What `write` did, or would do: paths relative to the root, sorted."""

    written: list[str]
    removed: list[str]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--changed", metavar="REV", help="render only what differs from this revision, HEAD for what is not committed"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 3 when something would change")
    parser.add_argument("--json", action="store_true", help="print the changed paths as JSON")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    root = workspace.root
    with step("render") as progress:
        wanted, changes = _changed(root, options.changed) if options.changed else _all(root)
        if not options.check:
            apply(root, wanted, changes)
        progress.note = f"{len(wanted)} files"
    if options.json:
        print(json.dumps({"written": changes.written, "removed": changes.removed}))
    else:
        _show(changes, len(wanted))
    if options.check and (changes.written or changes.removed):
        count = len(changes.written) + len(changes.removed)
        raise Refusal(f"gitops/: {count} files differ from a fresh render", tip="run `wharf render` and commit")
    return 0


def _all(root: Path) -> tuple[dict[str, str], Changes]:
    wanted = render_all(root)
    return wanted, compare(root, wanted)


def _changed(root: Path, revision: str) -> tuple[dict[str, str], Changes]:
    """Return what must be there of what a change since `revision` touches, and how it differs from what is there."""
    from ci.validation.repository import Repository
    from ci.validation.scope import narrow, touches_code

    repository = Repository(root)
    paths = repository.changed(repository.resolve(revision))
    if touches_code(paths):
        return _all(root)
    scope = narrow(root, paths, None)
    touched = {(name, model) for model, names in scope.models.items() for name in names}
    bootstrap = argocd.render(root) if scope.bootstrap else {}
    wanted = render_changed(root, set(pins(root)) & touched) | bootstrap
    return wanted, compare(root, wanted, touched, bootstrap=bool(bootstrap))


def _show(changes: Changes, total: int) -> None:
    lines = [f"write   {path}" for path in changes.written] + [f"remove  {path}" for path in changes.removed]
    more = [f"… and {len(lines) - _SHOWN} more (--json shows all)"] if len(lines) > _SHOWN else []
    print("\n".join([*lines[:_SHOWN], *more]) or f"nothing to change: {total} files in gitops/ are up to date")


def render_release(pin: Release, spec: ModelSpec, environment: Environment) -> dict[str, str]:
    """Return the text of every manifest of a release by its file name, sorted; the same input gives the same bytes.

    Raises Mistake when the three do not belong together, or the namespace pattern makes no DNS label.
    """
    if (pin.model, pin.environment) != (spec.name, environment.name):
        where = release.path_of(pin.environment, pin.model)
        raise Mistake(f"{where}: belongs to neither model '{spec.name}' nor environment '{environment.name}'")
    return texts(manifests.all_of(pin, spec, environment))


def texts(objects: Mapping[str, manifests.Manifest]) -> dict[str, str]:
    """Return the text of each manifest by its file name, sorted."""
    return {name: _HEADER + dump(manifest) for name, manifest in sorted(objects.items())}


def folder_of(environment: str, model: str) -> str:
    """Return the folder of a release's manifests, relative to the root of the repository."""
    return f"{RENDERED}/{environment}/{model}"


def pins(root: Path) -> list[tuple[str, str]]:
    """Return (environment, model) of every release file under `root`, sorted."""
    return sorted((path.parent.name, path.stem) for path in (root / RELEASES).glob("*/*.yaml"))


def render_all(root: Path) -> dict[str, str]:
    """Return the text of every file that a machine alone writes, releases aside, by its path relative to `root`.

    Raises Mistake, one line a fault, for broken releases, specs, environments or settings of Argo CD.
    """
    return render_changed(root, pins(root)) | argocd.render(root)


def render_changed(root: Path, changed: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the manifests of these pairs (environment, model) alone."""
    environments = {environment.name: environment for environment in load_all(root)}
    specs: dict[str, ModelSpec] = {}
    files: dict[str, str] = {}
    faults: list[str] = []
    for name, model in changed:
        where = release.path_of(name, model)
        try:
            if name not in environments:
                raise Mistake(f"{where}: no environment '{name}'{did_you_mean(name, environments)}")
            pin = release.load(root, name, model)
            if pin is None:
                raise Mistake(f"{where}: does not exist")
            if model not in specs:
                specs[model] = load_spec(Workspace(root), model)
            rendered = render_release(pin, specs[model], environments[name])
        except Mistake as error:
            faults += error.lines
            continue
        files |= {f"{folder_of(name, model)}/{file}": text for file, text in rendered.items()}
    if faults:
        raise Mistake(list(dict.fromkeys(faults)), tip="`wharf validate` checks everything")
    return files


def compare(
    root: Path, wanted: Mapping[str, str], only: Iterable[tuple[str, str]] | None = None, *, bootstrap: bool = True
) -> Changes:
    """Return what differs between `wanted` and the files there: all of `gitops/rendered`, or of `only` these pairs.

    `bootstrap`: and of what Argo CD is bootstrapped from, unless the tree has no settings for it.
    """
    folders = [RENDERED] if only is None else [folder_of(*pair) for pair in only]
    there = {str(path.relative_to(root)) for folder in folders for path in (root / folder).rglob("*") if path.is_file()}
    if bootstrap and (root / argocd.SETTINGS).is_file():
        there |= set(argocd.there(root))
    written = [
        path for path, text in wanted.items() if path not in there or (root / path).read_bytes() != text.encode()
    ]
    return Changes(sorted(written), sorted(there - wanted.keys() - {f"{RENDERED}/.gitkeep"}))


def write(root: Path, wanted: Mapping[str, str]) -> Changes:
    """Make the machine's folders under `root` hold exactly `wanted`; a file that is right already is not touched.

    Each file is replaced as a whole; when this is cut off, running it again does the rest. Raises OSError.
    """
    changes = compare(root, wanted)
    apply(root, wanted, changes)
    return changes


def apply(root: Path, wanted: Mapping[str, str], changes: Changes) -> None:
    """Do the changes that `compare` found."""
    for path in changes.written:
        write_atomic(root / path, wanted[path], durable=False)  # git has it, or the next render makes it again
    for path in changes.removed:
        (root / path).unlink()
        for folder in (root / path).parents:
            if folder == root / RENDERED or any(folder.iterdir()):
                break
            folder.rmdir()
