"""Read the rows of a table: CSV or TSV with a header, or JSON objects one a line."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from sandfleet.cli.ways.entry import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CSV: Final = "csv"
TSV: Final = "tsv"
JSONL: Final = "jsonl"
MAX_CELL_CHARS: Final = 1 << 20
_KINDS: Final[dict[type, str]] = {type(None): "null", list: "a list", dict: "an object"}


class Row(NamedTuple):
    """One row: the number of its first line, counted from 1, and its values by column."""

    line: int
    values: dict[str, str]


class Table(NamedTuple):
    """The columns of a table, in their order, and its rows."""

    columns: Sequence[str]
    rows: Sequence[Row]


def parse_table(text: str, kind: str, faults: list[Fault]) -> Table:
    """Parse the text of a table; `kind` is ``csv``, ``tsv`` or ``jsonl``. Skip empty lines.

    Add each faulty line to `faults`, or that there is no row. The table has no columns if its header
    is faulty.
    """
    table = _parse_objects(text, faults) if kind == JSONL else _parse_cells(text, kind, faults)
    if not table.rows and not faults:
        empty = "has no rows" if kind == JSONL else "has no rows below its header"
        faults.append(Fault("", empty))
    return table


def _parse_cells(text: str, kind: str, faults: list[Fault]) -> Table:
    lines = _read_cells(text, kind, faults)
    number, header = next(lines, (1, list[str]()))
    columns = [name.strip() for name in header]
    faults += [Fault(f"line {number}", said) for said in _check_columns(columns, kind)]
    if faults:
        return Table([], [])
    rows: list[Row] = []
    for line, cells in lines:
        if len(cells) == len(columns):
            rows.append(Row(line, dict(zip(columns, cells, strict=True))))
        else:
            faults.append(Fault(f"line {line}", f"has {len(cells)} fields, the header has {len(columns)}"))
    return Table(columns, rows)


def _read_cells(text: str, kind: str, faults: list[Fault]) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each record's first line, and its cells."""
    csv.field_size_limit(MAX_CELL_CHARS)
    delimiter = "\t" if kind == TSV else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    try:
        for cells in reader:
            if cells and cells != [""]:
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        faults.append(Fault(f"line {line}", _describe_csv(str(error))))


def _describe_csv(said: str) -> str:
    if said == "unexpected end of data":
        return 'a quoted field that begins here has no end: close it with "'
    if "field larger than" in said:
        return f"has a field of more than {MAX_CELL_CHARS} characters: is a quote not closed?"
    return f"is no CSV ({said})"


def _check_columns(columns: list[str], kind: str) -> Iterator[str]:
    if not columns:
        yield "the table is empty: its first line must name the columns"
        return
    for name in dict.fromkeys(name for name in columns if columns.count(name) > 1):
        yield f"column {name or '(without a name)'} is there twice"
    for number, name in enumerate(columns, 1):
        if not name:
            yield f"column {number} has no name"
        elif "{" in name or "}" in name or not name.isprintable():
            yield f"column {number}: a name must have no braces and no control characters"
    if len(columns) == 1:
        for sign, other in (("\t", "--tsv" if kind == CSV else ""), (",", "--csv" if kind == TSV else "")):
            if sign in columns[0] and other:
                yield f"there is one column, {columns[0]!a}: did you mean {other}?"
        if ";" in columns[0]:
            yield f"there is one column, {columns[0]!a}: columns are separated by {'tabs' if kind == TSV else 'commas'}, not by ;"


def _parse_objects(text: str, faults: list[Fault]) -> Table:
    columns: dict[str, None] = {}
    rows: list[Row] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line, parse_float=str, parse_int=str)
        except json.JSONDecodeError as error:
            faults.append(Fault(f"line {number}", f"is not JSON ({error.msg} at column {error.colno})"))
            continue
        except RecursionError:
            faults.append(Fault(f"line {number}", "is nested too deeply"))
            continue
        if not isinstance(values, dict):
            faults.append(Fault(f"line {number}", "must be a JSON object with the values of a job"))
            continue
        named = cast("dict[str, Any]", values)
        row = _read_object(named, f"line {number}", faults)
        columns |= dict.fromkeys(named)  # those of faulty values, too: the column is there
        rows.append(Row(number, row))
    return Table(list(columns), rows)


def _read_object(values: dict[str, Any], place: str, faults: list[Fault]) -> dict[str, str]:
    """Return the values as text, numbers as they are written."""
    row: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, str):
            row[name] = value
        elif isinstance(value, bool):
            row[name] = "true" if value else "false"
        else:
            kind = _KINDS.get(type(cast("object", value)), "NaN or Infinity")
            faults.append(Fault(place, f"{name}: must be text, a number, true or false, not {kind}"))
    return row
