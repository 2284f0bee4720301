"""The Python of models and bentos: whether it can be read at all."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence
from pathlib import Path

_FOLDERS = ("models/", "bentos/")


def check_files(root: Path, paths: Sequence[str]) -> list[str]:
    """Return one fault for each Python file among `paths` under models/ and bentos/ that is not valid Python."""
    mine = [path for path in paths if path.startswith(_FOLDERS) and path.endswith(".py")]
    return [fault for path in mine if (fault := _fault(path, (root / path).read_bytes()))]


def _fault(path: str, content: bytes) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a doubtful escape is valid Python; ruff tells of it
            ast.parse(content, path)
    except SyntaxError as error:
        place = f":{error.lineno}" if error.lineno else ""
        return f"{path}{place}: not valid Python: {error.msg}"
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested too deeply for the parser
        return f"{path}: not valid Python: {error or type(error).__name__}"
    return ""
