"""Describe pydantic's faults for the person who typed the spec.

A message has the unit of the field, and the name that was probably meant. No message repeats an
input value, which may be a secret.
"""

from __future__ import annotations

import difflib
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import BaseModel

from sandfleet_config.units import format_limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import ValidationError

SHOWN_NAME_CHARS: Final = 80
NEARNESS: Final = 0.65
"""The least similarity of two names (`difflib`, 0 to 1) at which one is suggested for the other."""
KEY_MARK: Final = "[key]"
"""The mark of pydantic at a fault of a mapping's key; without it the value is at fault."""

OTHER_NAMES: Final[Mapping[str, str]] = {
    "args": "command",
    "argv": "command",
    "cmd": "command",
    "cwd": "working_dir",
    "entrypoint": "command",
    "mem": "resources.memory_bytes",
    "memory": "resources.memory_bytes",
    "memory_bytes": "resources.memory_bytes",
    "network": "security.network_mode",
    "processes": "resources.pids_limit",
    "tags": "labels",
    "ttl": "queue_ttl",
}
"""Names that other tools use for fields of a spec, where the spelling alone would not find ours."""

_KINDS: Final[Mapping[str, str]] = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_unicode": "is not valid UTF-8",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "is too large",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be an object of names and values",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "byte_size": "must be a number of bytes, or a size such as 256MiB",
    "byte_size_unit": "must be a number of bytes, or a size such as 256MiB",
    "json_invalid": "is not JSON",
}
_BOUNDS: Final[Mapping[str, tuple[str, str]]] = {
    "greater_than": ("gt", "must be more than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def describe_faults(error: ValidationError, model: type[BaseModel]) -> list[tuple[dict[str, str], str]]:
    """Return field, message and pydantic type of each fault of `error`, which `model` raised."""
    return [(describe_fault(item, model), item["type"]) for item in list_faults(error)]


def list_faults(error: ValidationError) -> list[Mapping[str, Any]]:
    """Return what pydantic says of each fault; there may be 20,000."""
    details = error.errors(include_url=False, include_input=False)
    # A default that depends on a faulty field is not computed; the faulty field is reported itself.
    return [cast("Mapping[str, Any]", item) for item in details if item["type"] != "default_factory_not_called"]


def describe_fault(item: Mapping[str, Any], model: type[BaseModel]) -> dict[str, str]:
    """Return field and message of one fault. A hint at a name takes 0.2 ms."""
    location = tuple(str(part) for part in item["loc"])
    if location[:1] == ("spec",) and len(location) > 1 and (inner := _find_part(model, "spec")) is not None:
        location, model = location[1:], inner
    is_key = location[-1:] == (KEY_MARK,)
    if is_key:
        location = location[:-1]
    field = ".".join(map(_to_printable, location))
    message = (
        f"there is no such field{_suggest(location, model)}"
        if item["type"] == "extra_forbidden"
        else _describe_kind(item, field)
    )
    return {"field": field or "spec", "message": f"the name {message}" if is_key else message}


def _describe_kind(item: Mapping[str, Any], field: str) -> str:
    kind: str = item["type"]
    context: Mapping[str, Any] = item.get("ctx", {})
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        bound = context[name]
        return (
            "must not be negative"
            if (kind, bound) == ("greater_than_equal", 0)
            else f"{words} {_format_bound(field, bound)}"
        )
    if kind in {"literal_error", "enum"}:
        return f"must be {context['expected']}"
    if kind == "string_too_long":
        return f"has too many characters, the limit is {context['max_length']}"
    if kind == "too_long":
        actual = context.get("actual_length")
        return f"has {actual or 'too many'} items, the limit is {context['max_length']}"
    if kind == "value_error":
        return str(context["error"])
    return _KINDS.get(kind) or str(item["msg"])


def _format_bound(field: str, bound: object) -> str:
    return format_limit(field, bound) if isinstance(bound, int | float) else str(bound)


def _to_printable(part: str) -> str:
    # An unknown key is text of the sender: show it printable and short.
    return part if part.isprintable() and len(part) <= SHOWN_NAME_CHARS else ascii(part)[:SHOWN_NAME_CHARS]


def _suggest(location: Sequence[str], model: type[BaseModel]) -> str:
    """Return the hint with the path of the field that was probably meant, or nothing."""
    name = location[-1].lower()
    paths = _field_paths(model)
    # Of two fields with the same name, suggest the one beside the unknown field.
    beside = ".".join(location[:-1])
    # Otherwise the one that is a part of nothing else.
    leaves = {path.rpartition(".")[2]: path for path in paths}
    leaves |= {path: path for path in paths if "." not in path}
    leaves |= {path.rpartition(".")[2]: path for path in paths if path.rpartition(".")[0] == beside}
    meant = [path for other, path in OTHER_NAMES.items() if other == name and path in paths]
    begins = [leaf for leaf in leaves if leaf == name or leaf.startswith(f"{name}_") or name.startswith(leaf)]
    meant += [leaves[leaf] for leaf in begins]
    meant += [leaves[leaf] for leaf in difflib.get_close_matches(name, leaves, n=1, cutoff=NEARNESS)]
    return f", did you mean {meant[0]}?" if meant else ""


@cache
def _field_paths(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the paths of all fields of `model` and of its parts."""
    return tuple(_walk(model, ""))


def _walk(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name in model.model_fields:
        yield prefix + name
        part = _find_part(model, name)
        if part is not None:
            yield from _walk(part, f"{prefix}{name}.")


def _find_part(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    info = model.model_fields.get(name)
    kind: Any = info.annotation if info else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
