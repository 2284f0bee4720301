"""The prediction log: one JSON line a request in `<folder>/YYYY-MM-DD.jsonl` (UTC)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

_DAY = 86_400


class PredictionLog:
    """Appends with one write a line, so that the lines of several processes never mix.

    A disk that is full must not stop the answers: the line is counted by the caller and said once on standard error.
    """

    def __init__(self, folder: Path | None) -> None:
        """Write to `folder`, made when it is missing; None keeps no log."""
        self._folder, self._day, self._fd, self._said = folder, -1, -1, False

    def write(self, now: float, record: Mapping[str, Any]) -> bool:
        """Append `record` to the file of the day of `now` (seconds since 1970); return False when it was lost."""
        if self._folder is None:
            return True
        try:
            if int(now // _DAY) != self._day:
                self._open(now)
            line = orjson.dumps(record, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
            if os.write(self._fd, line) == len(line):
                self._said = False
                return True
            os.write(self._fd, b"\n")  # end the cut line, so that the next one can be read
            reason = "a line was cut"
        except OSError as error:
            reason = error.strerror or str(error)
        if not self._said:
            self._said = True
            print(f"prediction log {self._folder}: {reason}; predictions go on unlogged", file=sys.stderr, flush=True)
        return False

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
        self._day = self._fd = -1

    def _open(self, now: float) -> None:
        self.close()
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        name = time.strftime("%Y-%m-%d.jsonl", time.gmtime(now))
        self._fd = os.open(self._folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._day = int(now // _DAY)
