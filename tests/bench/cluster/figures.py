"""Figures as they are printed: a table in Markdown, each with its aim and, where there is one, its peer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One row. `aim` says what was wanted; `beside` compares with something that was measured in the same run."""

    what: str
    value: str
    aim: str = ""
    beside: str = ""


def text(title: str, rows: Sequence[Figure]) -> str:
    """Return a table; columns that no row uses are left out."""
    columns = [("figure", [row.what for row in rows]), ("measured", [row.value for row in rows])]
    columns += [("aim", [row.aim for row in rows]), ("beside it", [row.beside for row in rows])]
    used = [(name, cells) for name, cells in columns if any(cells)]
    lines = ["| " + " | ".join(name for name, _ in used) + " |", "|---|" + "---:|" * (len(used) - 1)]
    lines += ["| " + " | ".join(cells) + " |" for cells in zip(*(cells for _, cells in used), strict=True)]
    return "\n".join([f"### {title}", "", *lines, ""])


def seconds(value: float) -> str:
    return f"{value:.1f} s"


def median_and_worst(values: Sequence[float]) -> str:
    """Return both; in so few values the worst is the maximum."""
    return f"{statistics.median(values):.1f} s, worst {max(values):.1f} s"


def times(slow: float, quick: float, than: str) -> str:
    """Return how many times as quick `quick` is."""
    return f"{slow / quick:.2f} x as quick as {than}"


def size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"
