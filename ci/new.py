"""`wharf new NAME`: the directory of a new model, which passes validation, trains and serves as it stands."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from string import Template

from ci.errors import Mistake
from ci.files import write_atomic
from ci.names import taken_by
from ci.workspace import Workspace

_TEMPLATES = Path(__file__).parent / "templates"


def new(workspace: Workspace, name: str) -> list[Path]:
    """Write the directories `models/<name>` and `bentos/<name>`; return the files, relative to the repository.

    Raises Mistake for a name that cannot be used or that exists; nothing is written then.
    """
    from models.spec import SpecError, parse

    folders = {"model": workspace.models / name, "bento": workspace.bentos / name}
    contract = (_TEMPLATES / "model" / "model.yaml.tmpl").read_text(encoding="utf-8")
    try:
        parse(_filled(contract, name), where="wharf new", folder=name)
    except SpecError as error:
        raise Mistake(error.lines, tip="choose a name such as 'churn'") from None
    if module := taken_by(workspace.root, name):
        raise Mistake(f"'{name}' is the name of {module} already", tip="choose another name, such as 'churn'")
    for folder in folders.values():
        if folder.exists():
            raise Mistake(f"{folder.relative_to(workspace.root)} exists", tip="choose another name or remove it")
    written: list[Path] = []
    try:
        for kind, folder in folders.items():
            for template in sorted((_TEMPLATES / kind).iterdir()):
                write_atomic(folder / template.stem, _filled(template.read_text(encoding="utf-8"), name))
                written.append((folder / template.stem).relative_to(workspace.root))
    except BaseException:  # half a model is worse than none
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    return written


def _filled(template: str, name: str) -> str:
    return Template(template).substitute(name=name, Class=name.capitalize())


def _render(workspace: Workspace) -> list[str]:
    from ci.render import apply, compare
    from ci.rendering import argocd

    wanted = argocd.render(workspace.root)
    changes = compare(workspace.root, wanted, only=[], bootstrap=bool(wanted))
    apply(workspace.root, wanted, changes)
    return [*changes.written, *changes.removed]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="lower-case letters and digits: it names the directory, the service and the rest")


def main(workspace: Workspace, options: argparse.Namespace) -> int:
    for path in new(workspace, options.name):
        print(f"  {path}")
    # A new team is a new namespace, which the projects of Argo CD must allow.
    for path in _render(workspace):
        print(f"  {path}")
    print(f"\nIt works as it stands: git add models bentos gitops && git commit -m 'Add {options.name}'")
    print(f"then wharf ship {options.name}. Put your data into data.py and model.yaml, your model into train.py.")
    return 0
