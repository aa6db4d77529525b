"""Describe all faults of a recipe at once, each with its line and its field."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid
from sandfleet_config.faults import describe_faults

from sandfleet_worker.sandbox.image.recipe.model import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pydantic import ValidationError


def new_recipe_invalid(path: Path, text: str, value: Mapping[str, object], error: ValidationError) -> ImageInvalid:
    """Return the error with every fault of the recipe at `path`, in the order of its lines."""
    told = []
    for fault, _ in describe_faults(error, Recipe):
        field = "" if fault["field"] == "spec" else fault["field"]
        line = find_line(text, field.split("."), value)
        told.append((line, f"line {line}: {_show(field)}{fault['message']}" if field else fault["message"]))
    return ImageInvalid.of(describe(str(path), [words for _, words in sorted(told)]))


def describe(where: str, faults: Sequence[str]) -> str:
    """Return faults as one message: a line each, or all in one line if there is one."""
    if len(faults) == 1:
        return f"{where}: {faults[0]}"
    return "\n  ".join([f"{where} has {len(faults)} faults:", *faults])


def _show(field: str) -> str:
    """Return `files.0.from` as people write it, `files[0].from`."""
    return re.sub(r"\.(\d+)", r"[\1]", field) + " "


def find_line(text: str, location: Sequence[str], value: object) -> int:
    """Return the number of the line that a field is in, from 1; the nearest one that was found.

    `location` is the field's path in `value`. TOML's readers keep no lines, so look for the names
    and values one after the other.
    """
    lines = text.splitlines()
    found = 0
    for part in location:
        if isinstance(value, list) and part.isdigit() and int(part) < len(value):
            found = _find_item(lines, found, location[0], value, int(part))
            value = value[int(part)]
        elif isinstance(value, dict):
            found = _find_key(lines, found, part)
            value = value.get(part)
    return found + 1


def _find_item(lines: Sequence[str], start: int, name: str, items: list[object], index: int) -> int:
    item = items[index]
    if isinstance(item, str):
        return _find(lines, start, lambda line: json.dumps(item, ensure_ascii=False) in line or f"'{item}'" in line)
    heads = [number for number, line in enumerate(lines) if re.match(rf"\s*\[\[\s*{re.escape(name)}\s*\]\]", line)] or [
        number for number, line in enumerate(lines) if number >= start and "{" in line
    ]
    return heads[index] if index < len(heads) else start


def _find_key(lines: Sequence[str], start: int, key: str) -> int:
    pattern = re.compile(rf"""(^|[\s{{,\[])["']?{re.escape(key)}["']?\s*[=\].]""")
    return _find(lines, start, lambda line: pattern.search(line) is not None)


def _find(lines: Sequence[str], start: int, is_found: Callable[[str], bool]) -> int:
    return next((number for number in range(start, len(lines)) if is_found(lines[number])), start)
