"""Renew the reference of spec, outcome and codes, and the spec's JSON Schema.

Without --write, say what differs. Some columns are made from the models. The last columns of a
table are prose and stay as the page has them.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from generated import find_stale, print_or_write_stale
from pydantic import AfterValidator, BaseModel
from sandfleet.cli.exits import exit_code
from sandfleet_config import ErrorCode, Outcome, Payload, SandboxError, SandboxSpec
from sandfleet_config.errors import error_class
from sandfleet_config.files import Content
from sandfleet_config.outcome import Timing
from sandfleet_config.spec import BATCH_FIELDS, DELIVERY_FIELDS, RETRIED_CODES, STORED_FIELDS
from sandfleet_config.units import format_limit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

REFERENCE = Path(__file__).parent.parent / "docs/reference"
SCHEMA = REFERENCE / "spec.schema.json"
UNBOUNDED = 10 * 365 * 86400
"""From here on a bound only keeps numbers from overflowing."""
SECONDS = ("timeout", "grace", "queue_ttl", "duration", *(field.name for field in dataclasses.fields(Timing)))


# Types, in words.


def describe_type(annotation: Any, name: str = "") -> str:
    """Return what JSON has for a field of that type."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return describe_type(args[0], name)
    if dataclasses.is_dataclass(annotation):
        return "object"
    if origin is types.UnionType or origin is typing.Union:
        return " or ".join("null" if arg is type(None) else describe_type(arg, name) for arg in args)
    if origin is Literal:
        return " or ".join(f"`{arg}`" for arg in args)
    if origin in (tuple, list):
        return f"list of {_pluralize(describe_type(args[0], name))}"
    if origin is dict:
        return f"object of {_pluralize(describe_type(args[1], name))} by name"
    if annotation is Content:
        return "text, or `{data, encoding}`"
    if annotation is Payload:
        return "text, `{data, encoding}` or `{sha256}`"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    return _describe_class(annotation, name)


def _pluralize(words: str) -> str:
    return re.sub(r"^\w+", r"\g<0>s", words)


def _describe_class(annotation: Any, name: str) -> str:
    if annotation is ErrorCode:
        return "code"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "text"
    words = {
        datetime: "text, a time in ISO 8601",
        str: "text",
        bool: "true or false",
        int: "whole number",
        float: "number",
    }
    return f"{words.get(annotation, 'text')}{_find_unit(name, annotation)}"


def _find_unit(name: str, annotation: Any) -> str:
    if annotation not in (int, float):
        return ""
    if name.endswith("_bytes"):
        return ", bytes"
    if name.endswith("_seconds") or (name in SECONDS and (annotation, name) != (int, "run")):
        return ", seconds"
    return ", µs in each 100 ms" if name == "cpu_quota" else ""


# The spec.


def find_spec_rows(model: type[BaseModel] = SandboxSpec, prefix: str = "") -> Iterator[tuple[str, ...]]:
    """Yield field, type, default, bounds, contract version and, if the model has it, meaning."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not issubclass(kind, Content):
            yield from find_spec_rows(kind, f"{path}.")
        else:
            default = "required" if field.is_required() else _show_default(field.get_default(call_default_factory=True))
            bounds = describe_bounds(name, kind, field.metadata)
            yield f"`{path}`", describe_type(kind, name), default, bounds, _find_version(path), field.description or ""
            part = get_args(kind)[0] if get_origin(kind) is tuple else None
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from find_spec_rows(part, f"{path}[].")


def _show_default(value: Any) -> str:
    if isinstance(value, Content):
        value = value.data
    if value == RETRIED_CODES:
        return "the host category"
    return f"`{json.dumps(list(value) if isinstance(value, tuple) else value)}`"


def _find_version(path: str) -> str:
    if path == "prepared":
        return "6"
    if path.partition(".")[0] in BATCH_FIELDS or path == "output.live":
        return "5"
    if path.partition("[")[0] in STORED_FIELDS or path == "output.store":
        return "4"
    return "2" if path in DELIVERY_FIELDS else "3" if path == "requires" else "1"


def describe_bounds(name: str, kind: Any, metadata: Iterable[Any]) -> str:
    """Return the bounds of a field in words."""
    found: dict[str, float] = {}
    for item in metadata:
        found |= {
            key: getattr(item, key) for key in ("ge", "gt", "le", "min_length", "max_length") if hasattr(item, key)
        }
        if isinstance(item, AfterValidator) and "bound" in (near := inspect.getclosurevars(item.func).nonlocals):
            found["least"] = near["bound"]
    is_text = kind is str
    parts = []
    if "max_length" in found:
        least = f"{found['min_length']} to " if found.get("min_length") else "at most "
        parts.append(f"{least}{found['max_length']} {'characters' if is_text else 'items'}")
    at_most = format_limit(name, found["le"]) if found.get("le", UNBOUNDED) < UNBOUNDED else ""
    if "least" in found:
        parts.append(f"0, or at least {format_limit(name, found['least'])}")
    elif "ge" in found:
        parts.append(f"{found['ge']:g} to {at_most}" if at_most else f"at least {found['ge']:g}")
    elif "gt" in found:
        parts.append(f"more than {found['gt']:g}, at most {at_most}")
    return ", ".join(parts)


def new_schema() -> str:
    """Return the JSON Schema of a spec, as one line of a file of jobs has it."""
    schema = SandboxSpec.model_json_schema()
    for part in [schema, *schema["$defs"].values()]:
        for name, field in part.get("properties", {}).items():
            _widen(name, field)
    schema["$defs"]["ErrorCode"].pop("description")
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A job of sandfleet"}
    return json.dumps({**head, **schema, "title": head["title"]}, indent=2, ensure_ascii=False) + "\n"


def _widen(name: str, field: dict[str, Any]) -> None:
    """Say what the model takes besides: its validators read it before the schema counts."""
    field.pop("title", None)
    if name.endswith("_bytes"):
        # Pydantic writes the bounds of a number that a validator reads first under names of its
        # own.
        field.update(minimum=field.pop("ge"), maximum=field.pop("le"), type=["integer", "string"])
    elif name == "env":
        items = {"type": field.pop("type"), "items": field.pop("items"), "maxItems": field.pop("maxLength")}
        field["anyOf"] = [items, {"type": "object", "additionalProperties": {"type": "string"}}]
    elif name in ("stdin", "content"):
        kinds = [item for item in field.get("anyOf", [field]) if item != {"type": "null"}]
        field["anyOf"] = [{"$ref": item.pop("$ref")} for item in kinds] + [{"type": "string"}]
        field["default"] = ""
    elif name == "artifacts":
        field["items"] = {"anyOf": [field["items"], {"type": "string"}]}
    elif name == "size":
        field["anyOf"] = [{"type": "integer", "minimum": 0}, {"type": "null"}]


# The outcome.


def find_outcome_rows() -> Iterator[tuple[str, ...]]:
    """Yield field, type and any meaning of each field of an outcome and of its parts."""
    for name, field in Outcome.model_fields.items():
        told = field.description or ""
        for row in _find_rows_below(name, field.annotation):
            yield *row, f"In Python only. {told}" if field.exclude else told


def _find_rows_below(path: str, kind: Any) -> Iterator[tuple[str, ...]]:
    part, shown = _find_part(kind)
    if part is None:
        yield f"`{path}`", describe_type(kind, path.rpartition(".")[2])
    elif path == "stderr":
        yield "`stderr`", "an object as `stdout`"
    else:
        for name, hint in get_type_hints(part, include_extras=True).items():
            yield from _find_rows_below(f"{path}{shown}.{name}", hint)


def _find_part(kind: Any) -> tuple[Any, str]:
    """Return the dataclass that a field consists of, if any, and how its items are named."""
    args = get_args(kind)
    if dataclasses.is_dataclass(kind):
        return kind, ""
    if get_origin(kind) is tuple and dataclasses.is_dataclass(args[0]):
        return args[0], "[]"
    if get_origin(kind) is dict and dataclasses.is_dataclass(args[1]):
        return args[1], ".NAME"
    return None, ""


# The codes.


def find_code_rows() -> Iterator[tuple[str, ...]]:
    """Yield code, category, whether another try can help, exception class and exit code."""
    for code in ErrorCode:
        found: type[SandboxError] | None = None if code is ErrorCode.OK else error_class(code)
        shown = f"`{found.__name__}`" if found else "none"
        yield f"`{code}`", str(code.category), "yes" if code.is_retryable else "no", shown, _find_exit(code)


def _find_exit(code: ErrorCode) -> str:
    """Return `sandfleet run`'s exit codes where the program gave no number, and where it gave 3."""
    fields: dict[str, Any] = {"exit_code": 0} if code is ErrorCode.OK else {}
    if code is ErrorCode.SIGNALED:
        return "128 + N"
    alone, with_own = (exit_code(Outcome.of(code, "-", **given)) for given in (fields, {"exit_code": 3}))
    if code is ErrorCode.EXIT_NONZERO:
        return "the program's"
    return str(alone) if alone == with_own or code is ErrorCode.OK else f"the program's, or {alone}"


# Tables in pages.

TABLES: dict[str, tuple[str, tuple[str, ...], int, Callable[[], Iterator[tuple[str, ...]]]]] = {
    "spec": ("spec.md", ("field", "type", "default", "bounds", "contract", "meaning"), 1, find_spec_rows),
    "outcome": ("outcome.md", ("field", "type", "meaning"), 1, find_outcome_rows),
    "codes": (
        "codes.md",
        ("code", "category", "retry?", "class", "exit code", "what happened", "what to do"),
        2,
        find_code_rows,
    ),
}
"""Of each table: page, columns, how many of them are prose, and where the rest comes from."""


def read_prose(text: str, count: int) -> dict[str, list[str]]:
    """Return the last `count` cells of each row of a table, by its first cell."""
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("| `")]
    return {row[0].strip(): [cell.strip() for cell in row[-count:]] for row in rows}


def new_table(name: str, before: str) -> str:
    """Return the table `name` as Markdown; `before` is the table whose prose is kept."""
    _, columns, prose_columns, find_rows = TABLES[name]
    kept = read_prose(before, prose_columns)
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for row in find_rows():
        made = row[: len(columns) - prose_columns]
        told = [cell for cell in row[len(made) :] if cell] or kept.get(row[0], [""] * prose_columns)
        lines.append("| " + " | ".join([*made, *told]) + " |")
    return "\n".join(lines)


def rewrite(name: str, text: str) -> str:
    """Return the page's text with the table `name` of today."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, _, rest = text.partition(begin)
    before, _, tail = rest.partition(end)
    return f"{head}{begin}\n{new_table(name, before)}\n{end}{tail}"


def find_changes() -> dict[Path, str]:
    """Return each file of the reference that is not as the code says, with what it should hold."""
    wanted = {REFERENCE / page: rewrite(name, (REFERENCE / page).read_text()) for name, (page, *_) in TABLES.items()}
    wanted[SCHEMA] = new_schema()
    return find_stale(wanted)


if __name__ == "__main__":
    print_or_write_stale(find_changes())
