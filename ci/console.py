"""What the user sees while a command works: steps with their seconds, tables, colours only on a terminal."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TextIO

_CODES = {"green": "32", "red": "31", "yellow": "33", "dim": "2", "bold": "1"}


def colours_on(stream: TextIO) -> bool:
    """Tell whether `stream` is a terminal that wants colours (https://no-color.org)."""
    return stream.isatty() and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"


def paint(text: str, colour: str, stream: TextIO | None = None) -> str:
    """Return `text` in `colour`, or unchanged where colours are off."""
    return f"\033[{_CODES[colour]}m{text}\033[0m" if colours_on(stream or sys.stdout) else text


def say(text: str) -> None:
    """Print a line of progress to standard error, so that standard output stays for results."""
    print(text, file=sys.stderr, flush=True)


class Step:
    """A running step; `note` is shown behind its name when it ends."""

    note = ""


_running: list[Step] = []  # the innermost last


@contextmanager
def step(name: str) -> Generator[Step]:
    """Show `name` while the block runs, then its outcome and seconds, on standard error.

    On a terminal the seconds tick, of the innermost step; elsewhere one line is printed when the step ends.
    """
    current, begun, ended = Step(), time.monotonic(), threading.Event()
    live = sys.stderr.isatty()

    def tick() -> None:
        while not ended.wait(0.2):
            if _running[-1:] != [current]:
                continue
            print(f"\r\033[K  … {name}  {time.monotonic() - begun:.0f}s", end="", file=sys.stderr, flush=True)

    ticker = threading.Thread(target=tick, daemon=True)
    if live:
        ticker.start()
    mark = paint("✗", "red", sys.stderr)
    _running.append(current)
    try:
        yield current
        mark = paint("✓", "green", sys.stderr)
    finally:
        _running.remove(current)
        ended.set()
        if live:
            ticker.join()
            print("\r\033[K", end="", file=sys.stderr)
        note = f"  {current.note}" if current.note else ""
        say(f"  {mark} {name}{note}  {paint(f'{time.monotonic() - begun:.1f}s', 'dim', sys.stderr)}")


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return `rows` as left-aligned columns under `header`."""
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
    return "\n".join([paint(lines[0], "bold"), *lines[1:]])
