"""Manifests as YAML text: block style, keys in the given order, the same bytes for the same object.

Not PyYAML's emitter, for three reasons. Its text depends on whether libyaml is there, and these files are compared
byte by byte on every machine. It leaves text such as 12345e67 bare (a commit id may look so), which the YAML reader
of Kubernetes takes for a number. And it took 1.9 ms for one release where this takes 0.5 ms, at thousands of releases.

This writes the small part of YAML that manifests need; whatever is not plainly a word is written in JSON's double
quotes, which are YAML too, so that no reader takes text for something else. The tests read it back with PyYAML.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias, cast

Json: TypeAlias = "str | int | float | bool | Mapping[str, Json] | Sequence[Json] | None"

# Starts like a word or a path, or is a quantity such as 250m or 64Mi; never ends with a colon.
_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./@+-]*(:[A-Za-z0-9_./@+-]+)*|[0-9]+(m|Ki|Mi|Gi)")
_WORDS_WITH_A_MEANING = {"true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf"}


def dump(value: Mapping[str, Json]) -> str:
    """Return `value` as one YAML document without a `---` line; raises TypeError for what is not JSON."""
    lines: list[str] = []
    _mapping(value, "", "", lines)
    return "\n".join(lines) + "\n"


# The checks below are for dict and list, not Mapping and Sequence, whose isinstance is many times as slow.


def _mapping(value: Mapping[str, Json], indent: str, first: str, lines: list[str]) -> None:
    """Write the entries of a mapping; the first line begins with `first` (a list item) instead of `indent`."""
    lead = first or indent
    for key, entry in value.items():
        head = f"{lead}{_text(key)}:"
        if isinstance(entry, str):
            lines.append(f"{head} {_text(entry)}")
        elif isinstance(entry, dict) and entry:
            lines.append(head)
            _mapping(cast("Mapping[str, Json]", entry), indent + "  ", "", lines)
        elif isinstance(entry, (list, tuple)) and entry:
            lines.append(head)
            _list(cast("Sequence[Json]", entry), indent + "  ", lines)
        else:
            lines.append(f"{head} {_scalar(entry)}")
        lead = indent


def _list(value: Sequence[Json], indent: str, lines: list[str]) -> None:
    for item in value:
        if isinstance(item, dict) and item:
            _mapping(cast("Mapping[str, Json]", item), indent + "  ", f"{indent}- ", lines)
        elif isinstance(item, (list, tuple)) and item:
            raise TypeError("a list directly in a list is in no manifest")
        else:
            lines.append(f"{indent}- {_scalar(item)}")


@lru_cache(maxsize=4096)  # keys and most values come again in every manifest
def _text(value: str) -> str:
    if _PLAIN.fullmatch(value) and value.lower() not in _WORDS_WITH_A_MEANING:
        return value
    return json.dumps(value)


def _scalar(value: object) -> str:
    if isinstance(value, str):
        return _text(value)
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, dict) and not value:
        return "{}"
    if isinstance(value, (list, tuple)) and not value:
        return "[]"
    raise TypeError(f"{type(value).__name__} cannot be in a manifest")
