"""What a handler is given, what it answers, and how it refuses: shared by the kinds of models."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

Fault = dict[str, Any]  # {"loc": ["rows", 0, "mean_radius"], "msg": "is missing"}
MOST_FAULTS = 20  # a client that sends a wrong batch needs the first few, not a thousand lines


class Refused(Exception):
    """The request is answered with `status` (4xx or 5xx), `error` in one line and the faults in `detail`."""

    def __init__(self, status: int, error: str, detail: list[Fault] | None = None) -> None:
        super().__init__(error)
        self.status, self.error, self.detail = status, error, detail or []


@dataclass(frozen=True)
class Answer:
    """A prediction: the fields of the response and of the log line, and what the metrics count."""

    response: Mapping[str, Any]
    logged: Mapping[str, Any]
    classes: Mapping[str, int] = field(default_factory=dict[str, int])  # class: how often it was predicted
    values: list[float] = field(default_factory=list[float])  # predicted values of a regression
    outside: Mapping[str, int] = field(default_factory=dict[str, int])  # column: values outside of its min and max


class Handler(Protocol):
    """Turns a parsed body into an answer; one for table models, one for ranking models."""

    def answer(self, body: Any) -> Answer:
        """Predict for the parsed JSON `body`; raises Refused for one that is wrong, or for NaN predictions."""
        ...

    def example(self, size: int) -> dict[str, Any]:
        """Return a body with `size` rows or users that the model accepts."""
        ...


def unprocessable(faults: list[Fault]) -> Refused:
    """Return the refusal 422 that names the first faults."""
    first = faults[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return Refused(422, f"{where}: {first['msg']}{more}", faults[:MOST_FAULTS])


def fault(*loc: str | int, msg: str) -> Fault:
    """Return one fault at `loc`."""
    return {"loc": list(loc), "msg": msg}


def near(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest of `known`, or an empty string."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{found[0]}'?)" if found else ""


def fields_of(body: Any, required: str, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return `body` when it is an object that has `required` and at most `optional` besides; raises Refused."""
    known = (required, *optional)
    if not isinstance(body, dict):
        shape = f'{{"{required}": [...]}}'
        raise unprocessable([fault("body", msg=f"must be an object such as {shape}, not {shown(body)}")])
    unknown = [key for key in body if key not in known]
    faults = [fault(key, msg=f"unknown field{near(key, known)}") for key in unknown]
    if required not in body:
        faults.append(fault(required, msg="is missing"))
    if faults:
        raise unprocessable(faults)
    return body


def shown(value: Any) -> str:
    """Return a JSON value in the words of an error line, cut to a readable length."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
