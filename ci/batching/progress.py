"""How far a batch is, on standard error: rows, share, rows a second, time left."""

from __future__ import annotations

import sys
import time

from ci.console import say

_EVERY_TTY_S = 0.2
_EVERY_LINE_S = 10.0


class Progress:
    """Call `show` as often as you like; it prints when there is something new to say."""

    def __init__(self, rows: int | None) -> None:
        self._rows = rows
        self._live = sys.stderr.isatty()
        self._first = self._shown = time.monotonic()
        # The speed is that of the rows behind this point: those that an earlier run predicted took no time.
        self._base = (self._shown, 0, 0.0)
        self._reused = 0

    def show(self, done: int, share: float, reused: int) -> None:
        """Say that `done` rows (`share` of the input) are through, `reused` of them from an earlier run."""
        now = time.monotonic()
        if reused > self._reused:
            self._base, self._reused = (now, done, share), reused
        if now - self._shown < (_EVERY_TTY_S if self._live else _EVERY_LINE_S):
            return
        self._shown = now
        line = self.line(done, share, now)
        if self._live:
            print(f"\r\033[K  … {line}", end="", file=sys.stderr, flush=True)
        else:
            say(f"  {line}")

    def line(self, done: int, share: float, now: float) -> str:
        """Return what is said at `now`, seconds of time.monotonic."""
        begun, rows, part = self._base
        seconds = max(now - begun, 1e-9)
        words = [f"{done:,} rows" if self._rows is None else f"{done:,} of {self._rows:,} rows", f"{share:.0%}"]
        if done > rows and share > part:
            words.append(f"{(done - rows) / seconds:,.0f} rows/s")
            words.append(f"{duration(seconds * (1 - share) / (share - part))} left")
        if self._reused:
            words.append(f"{self._reused:,} were predicted before")
        return "  ".join(words)

    def end(self) -> None:
        """Remove the line."""
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)

    def summary(self, done: int) -> str:
        """Return the last line: rows and seconds in all, and how fast the rows of this run went."""
        seconds = time.monotonic() - self._first
        fresh = done - self._base[1]
        speed = f", {fresh / max(time.monotonic() - self._base[0], 1e-9):,.0f} rows/s" if fresh else ""
        again = f", {self._reused:,} were predicted before" if self._reused else ""
        return f"{done:,} rows{again}  {duration(seconds)}{speed}"


def duration(seconds: float) -> str:
    """Return seconds in words: `45 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
