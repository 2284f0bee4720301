"""Call the functions that a person writes in a model's directory, from the workspace's files."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from pathlib import Path
from typing import Any

from ci.errors import Mistake, WharfError, did_you_mean
from ci.workspace import Workspace


def call(workspace: Workspace, name: str, module: str, function: str, *arguments: Any) -> Any:
    """Return `function(*arguments)` of `models/<name>/<module>.py`.

    The file is loaded by its path, so that the checkout that a command works on is what runs, and fresh each time.
    Whatever it raises becomes a Mistake that names the file and the line: it is the user's code.
    """
    path = workspace.model(name) / f"{module}.py"
    shown = f"models/{name}/{module}.py"
    if not path.is_file():
        raise Mistake(f"{shown}: is missing", tip=f"write it; it must define {function}")
    try:
        loaded = _load(path, f"wharf_model_{name}_{module}")
        if not hasattr(loaded, function):
            near = did_you_mean(function, vars(loaded))
            raise Mistake(f"{shown}: has no function '{function}'{near}", tip=f"define {function} in {shown}")
        return getattr(loaded, function)(*arguments)
    except WharfError:
        raise
    except Exception as error:
        raise _explained(error, path, shown) from error


def _load(path: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up here
    spec.loader.exec_module(module)
    return module


def _explained(error: Exception, path: Path, shown: str) -> Mistake:
    line: int | str = "?"
    if isinstance(error, SyntaxError) and error.filename == str(path):
        line = error.lineno or line
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename == str(path):
            line = frame.lineno or line  # the innermost line of the user's own file
    reason = str(error).strip().splitlines()
    return Mistake(
        f"{shown}:{line}: {type(error).__name__}: {reason[0] if reason else 'no message'}",
        tip=f"correct {shown} or its data",
    )
