"""The errors a user meets, and the exit codes a script reads.

| code | meaning                                                                         |
|------|---------------------------------------------------------------------------------|
| 0    | done, or nothing to do                                                          |
| 1    | crash: a bug in Modelwharf; the traceback is kept in a file that the line names |
| 2    | mistake: bad input, a wrong name, a broken file                                 |
| 3    | refusal: the input was fine and a check said no (gate, validation, drift alert) |
| 4    | unavailable: something needed is not reachable now (MLflow, network, origin)    |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class WharfError(Exception):
    """An expected failure: `lines` say what is wrong (one fault a line), `tip` what to do next."""

    exit_code = 1

    def __init__(self, lines: str | Sequence[str], tip: str = "") -> None:
        self.lines = [lines] if isinstance(lines, str) else list(lines)
        self.tip = tip
        super().__init__("\n".join(self.lines))


class Mistake(WharfError):
    """The user's input is wrong."""

    exit_code = 2


class Refusal(WharfError):
    """The input is fine, a check said no."""

    exit_code = 3


class Unavailable(WharfError):
    """Something outside is not reachable now; the same command may work later."""

    exit_code = 4


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest of `known`, or an empty string."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{near[0]}'?)" if near else ""
