"""Names that a model cannot have, because a file of the repository has it already."""

from __future__ import annotations

from pathlib import Path


def taken_by(root: Path, name: str) -> str:
    """Return the module that a model `name` would collide with, relative to `root`; empty when there is none.

    A folder `bentos/metrics/` beside `bentos/metrics.py` is one of two modules of the same name: Python imports the
    folder, and the runtime breaks in every bento.
    """
    paths = (f"{folder}/{name}.py" for folder in ("bentos", "models"))
    return next((path for path in paths if (root / path).is_file()), "")
