"""Tables of one line a job: JSON lines and CSV.

A file of them can be cut after any row and gone on with.
"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from datetime import datetime
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sandfleet.results.columns import Column

SAVE_SECONDS: Final = 0.5
"""Least time between checkpoints: so much work at most is done again after a crash."""
FORMULA_STARTS: Final = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""A cell that begins so may be a formula: OWASP, "CSV Injection".

The last four are full-width forms.
"""


def _encode_time(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is no value of a table")


_json: Final = json.JSONEncoder(separators=(",", ":"), default=_encode_time)


def format_json(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as JSON lines.

    Characters beyond ASCII are escaped: half a UTF-16 pair has no UTF-8.
    """
    return "".join(f"{_json.encode(row)}\n" for row in rows).encode()


def format_csv(rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows as CSV in UTF-8 (RFC 4180).

    A ``'`` quotes text that a spreadsheet may take for a formula.
    """
    text = "".join(format_csv_row([_to_cell(value) for value in row.values()]) for row in rows)
    return text.encode(errors="backslashreplace")


def format_csv_row(cells: Sequence[object]) -> str:
    """Return one row, a line of CSV."""
    text = io.StringIO()
    # csv quotes no carriage return unless the line's own end has one. Unquoted, it begins a new row,
    # whose first cell may be a formula.
    if any(isinstance(cell, str) and "\r" in cell for cell in cells):
        csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL).writerow(cells)
    else:
        csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()


def quote_formula(text: str) -> str:
    """Return `text`, after a ``'`` if a spreadsheet may take it for a formula."""
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _to_cell(value: object) -> object:
    match value:
        case str():
            return quote_formula(value)
        case bool():
            return "true" if value else "false"
        case dict() | list():
            return _json.encode(value)
        case datetime():
            return value.isoformat()
        case _:
            return value


def _open_no_link(path: str, flags: int) -> int:
    """Open a file, but no symbolic link: other users of the folder may have made one."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


class LineFile:
    """A file of JSON lines or CSV under its temporary name."""

    def __init__(self, path: Path, columns: Sequence[Column], *, is_csv: bool, mark: int = 0) -> None:
        """Open it, cut after `mark` bytes.

        Raises:
            OSError: it cannot be written.
        """
        self._saved_at = time.monotonic()
        self._format = format_csv if is_csv else format_json
        self._path = path
        self._file: IO[bytes] = open(path, "r+b" if mark else "wb", opener=_open_no_link)  # noqa: SIM115  with an opener
        self._file.truncate(mark)
        self._file.seek(mark)
        if is_csv and not mark:
            self._file.write(format_csv([{column.name: column.name for column in columns}]))

    @staticmethod
    def has(path: Path, mark: int) -> bool:
        """Whether the file of an interrupted table has the first `mark` bytes."""
        return path.is_file() and path.stat().st_size >= mark

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows."""
        self._file.write(self._format(rows))

    def save(self) -> int | None:
        """Flush all rows so far to disk, so that they outlive a crash.

        Return the mark after them, in bytes; None if the last one is new enough.
        """
        if time.monotonic() - self._saved_at < SAVE_SECONDS:
            return None
        self._sync()
        self._saved_at = time.monotonic()
        return self._file.tell()

    def _sync(self) -> None:
        self._file.flush()
        os.fdatasync(self._file.fileno())

    def finish(self, path: Path) -> None:
        """Give the complete file its name."""
        self._sync()
        self._file.close()
        self._path.replace(path)

    def close(self) -> None:
        """Close the file; it keeps its temporary name."""
        self._file.close()
