"""Settings files in YAML, read strictly: unknown keys are refused, and each fault is one line that a person can act on.

Used by `models.spec` and by the other settings files of the repository.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

_Settings = TypeVar("_Settings", bound=BaseModel)


class SpecError(Exception):
    """A `model.yaml` that cannot be used; `lines` holds one line a fault, each with file and path."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        super().__init__("\n".join(lines))


class Strict(BaseModel):
    """Unknown keys are refused, and what was read is not changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read(text: str, where: str, settings: type[_Settings]) -> _Settings:
    """Read YAML text named `where` in error lines as `settings`; raises SpecError with one line a fault."""
    try:
        raw: Any = yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader that also refuses double keys
    except yaml.YAMLError as error:
        raise SpecError([f"{where}{yaml_fault(error)}"]) from None
    if not isinstance(raw, dict):
        raise SpecError([f"{where}: must be a mapping with the keys {', '.join(list(settings.model_fields)[:5])}, …"])
    try:
        return settings.model_validate(raw)
    except ValidationError as error:
        lines = [line for fault in error.errors() for line in _fault_lines(fault, settings)]
        raise SpecError([f"{where}: {line}" for line in lines]) from None


# The C parser is about ten times as fast, and thousands of specs are read in one go.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class StrictLoader(_SafeLoader):
    """Refuses a key that stands twice in one mapping, which YAML would answer with silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key.value}' stands twice", key.start_mark)
            if isinstance(key, yaml.ScalarNode):
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _checked(tag: str) -> None:
    """Let StrictLoader refuse, with its place, a value that looks like one of `tag` and is none, such as 2024-99-99."""
    construct = _SafeLoader.yaml_constructors[tag]

    def checked(loader: Any, node: yaml.ScalarNode) -> Any:
        try:
            return construct(loader, node)
        except (ValueError, KeyError, AttributeError, OverflowError):  # what PyYAML's own constructors let through
            problem = f"'{node.value}' is no {tag.rpartition(':')[2]} (text needs quotes)"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None

    StrictLoader.add_constructor(tag, checked)


for _kind in ("timestamp", "int", "float", "bool"):
    _checked(f"tag:yaml.org,2002:{_kind}")


def yaml_fault(error: yaml.YAMLError) -> str:
    """Return `:line:column: not valid YAML: …` for an error line, to stand behind the name of the file."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    place = f":{mark.line + 1}:{mark.column + 1}" if mark else ""
    return f"{place}: not valid YAML: {problem}"


_EXPECTED = {
    "string_type": "must be text",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "list_type": "must be a list",
    "dict_type": "must be a mapping",
    "model_type": "must be a mapping",
}


def _fault_lines(fault: ErrorDetails, settings: type[BaseModel]) -> list[str]:
    """Turn one pydantic error into lines `path: what is wrong (likely meaning)`."""
    path = ".".join(str(part) for part in fault["loc"])
    kind, given = fault["type"], fault.get("input")
    if kind == "extra_forbidden":
        return [f"{path}: unknown key{near(str(fault['loc'][-1]), _keys_at(fault['loc'][:-1], settings))}"]
    if kind == "invalid_key":
        return [f"{path}: a key must be text, not {shown(given)}"]
    if kind == "missing":
        return [f"{path}: is missing"]
    if kind == "value_error":
        lines = str(fault["ctx"]["error"]).split("\n") if "ctx" in fault else [fault["msg"]]
        return [f"{path}: {line}" if path else line for line in lines]
    if kind == "literal_error":
        allowed = re.findall(r"'([^']*)'", str(fault["ctx"]["expected"])) if "ctx" in fault else []
        return [f"{path}: '{given}' is not one of {', '.join(allowed)}{near(str(given), allowed)}"]
    if kind in _EXPECTED:
        quote = " (put it in quotes)" if kind == "string_type" and isinstance(given, (bool, int, float)) else ""
        return [f"{path}: {_EXPECTED[kind]}, not {shown(given)}{quote}"]
    message = re.sub(r"^(Value error, |(Input|String|Keys|List|Dictionary) should )", "must ", fault["msg"])
    message = re.sub(r" after validation, not \d+$", "", message)
    return [f"{path}: {message}, not {shown(given)}"]


def shown(value: object) -> str:
    """Return type and value, short enough for an error line."""
    return f"{type(value).__name__} {value!r}"[:80]


def near(word: str, known: Iterable[str]) -> str:
    """Return ` (did you mean 'x'?)` for the nearest of `known`, or an empty string."""
    nearest = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean '{nearest[0]}'?)" if nearest else ""


def _keys_at(loc: tuple[int | str, ...], settings: type[BaseModel]) -> list[str]:
    """Return the keys that are allowed at `loc`, for 'did you mean'."""
    model: Any = settings
    for part in loc:
        fields = getattr(model, "model_fields", {})
        if isinstance(part, str) and part in fields:
            model = fields[part].annotation
        while not hasattr(model, "model_fields"):
            inner = [a for a in getattr(model, "__args__", ()) if a is not type(None) and a is not str]
            if not inner:
                break
            model = inner[-1]
    return list(getattr(model, "model_fields", {}))
