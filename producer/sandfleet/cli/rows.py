"""Print rows in one grammar: ``-o table|wide|json|jsonl|csv|ids``. Rows are printed as they come.

Tables are for people: times are relative, long texts are cut. All other forms are for programs: the
fields are stable, times are ISO 8601 in UTC.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Annotated, Any, Final, Generic, TypeAlias, TypeVar

import typer

from sandfleet.cli.show import safe_line
from sandfleet.results.lines import format_csv_row, quote_formula

T = TypeVar("T")
PAGE_ROWS: Final = 200
"""Rows of a table whose widths are found together."""
MAX_CELL: Final = 48
_SIZES: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_AGES: Final = ((86400 * 2, 86400, "d"), (3600 * 2, 3600, "h"), (60 * 2, 60, "m"))


class Form(StrEnum):
    """A form of output."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    JSONL = "jsonl"
    CSV = "csv"
    IDS = "ids"


FormOption: TypeAlias = Annotated[Form, typer.Option("-o", "--output", help="table, wide, json, jsonl, csv or ids.")]
Quiet: TypeAlias = Annotated[bool, typer.Option("-q", help="Names or ids only, as -o ids.")]
NoTrunc: TypeAlias = Annotated[bool, typer.Option("--no-trunc", help="Cut no text in tables.")]
Limit: TypeAlias = Annotated[int, typer.Option("-n", "--limit", min=0, help="How many at most; 0 is all.")]


@dataclass(frozen=True)
class Columns(Generic[T]):
    """How rows of one kind are printed.

    `fields` returns what programs get, `table` the cells for people, by column; `wide` those that
    only the wide table has, and `name` the id.
    """

    fields: Callable[[T], Mapping[str, Any]]
    table: Callable[[T], Mapping[str, str]]
    wide: Callable[[T], Mapping[str, str]]
    name: Callable[[T], str]


def print_rows(rows: Iterable[T], columns: Columns[T], form: Form, *, is_whole: bool = False) -> int:
    """Print `rows` on stdout; return how many. `is_whole` cuts no text."""
    match form:
        case Form.TABLE | Form.WIDE:
            return _print_table(rows, columns, is_wide=form is Form.WIDE, is_whole=is_whole)
        case Form.IDS:
            return _print_lines(safe_line(columns.name(row)) for row in rows)
        case Form.JSONL:
            return _print_lines(json.dumps(columns.fields(row), separators=(",", ":")) for row in rows)
        case Form.JSON:
            return _print_array(columns.fields(row) for row in rows)
        case Form.CSV:
            return _print_csv(columns.fields(row) for row in rows)


def _print_lines(lines: Iterable[str]) -> int:
    count = 0
    for line in lines:
        print(line)
        count += 1
    return count


def _print_array(rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for row in rows:
        print("[" if not count else ",")
        print(json.dumps(row), end="")
        count += 1
    print("\n]" if count else "[]")
    return count


def _print_csv(rows: Iterable[Mapping[str, Any]]) -> int:
    count = 0
    for row in rows:
        if not count:
            sys.stdout.write(format_csv_row(list(row)))
        sys.stdout.write(format_csv_row([_to_cell(value) for value in row.values()]))
        count += 1
    return count


def _to_cell(value: Any) -> str:
    """Return a field's value as text, after an apostrophe if a spreadsheet would see a formula."""
    if value is None:
        return ""
    if isinstance(value, (dict, list)):
        return json.dumps(value)
    return quote_formula(safe_line(value)) if isinstance(value, str) else str(value)


def _print_table(rows: Iterable[T], columns: Columns[T], *, is_wide: bool, is_whole: bool) -> int:
    source, count = iter(rows), 0
    widths: dict[str, int] = {}
    while page := list(islice(source, PAGE_ROWS)):
        cells = [{**columns.table(row), **(columns.wide(row) if is_wide else {})} for row in page]
        shown = [{name: _cut(text, is_whole=is_whole) for name, text in row.items()} for row in cells]
        widths = {name: max(widths.get(name, 0), len(name), *(len(row[name]) for row in shown)) for name in shown[0]}
        if not count:
            _print_row({name: name for name in widths}, widths)
        for row in shown:
            _print_row(row, widths)
        count += len(page)
    return count


def _print_row(row: Mapping[str, str], widths: Mapping[str, int]) -> None:
    print("  ".join(f"{row[name]:<{width}}" for name, width in widths.items()).rstrip())


def _cut(text: str, *, is_whole: bool) -> str:
    safe = safe_line(text)
    return safe if is_whole or len(safe) <= MAX_CELL else f"{safe[: MAX_CELL - 3]}..."


def format_duration(seconds: float | None) -> str:
    """Return ``0.34s``, ``12s``, ``3m``, ``5h`` or ``2d``; ``-`` for None."""
    if seconds is None:
        return "-"
    for least, unit, name in _AGES:
        if seconds >= least:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.2g}s"  # noqa: PLR2004


def format_size(count: float) -> str:
    """Return bytes as ``20.9GiB``, in short."""
    for size, name in _SIZES:
        if count >= size:
            return f"{count / size:.3g}{name}"
    return f"{count:.0f}B"


def format_age(at: float, now: float) -> str:
    """Return how long ago `at` was, both unix times; ``-`` if it is not known."""
    return f"{format_duration(max(0.0, now - at) // 1)} ago" if at else "-"


def take(rows: Iterable[T], limit: int) -> tuple[Sequence[T] | Iterable[T], Callable[[], bool]]:
    """Return at most `limit` of `rows` (0: all), and a function that says later if more follow."""
    source = iter(rows)
    if not limit:
        return source, lambda: False
    return islice(source, limit), lambda: next(source, None) is not None
