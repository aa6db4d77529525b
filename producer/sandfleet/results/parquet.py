"""Tables in Parquet: parts, each a complete file; at the end one file with a row group of each."""

from __future__ import annotations

import importlib
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from sandfleet.errors import PackageMissing

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from sandfleet.results.columns import Column

CONVERTED_ROWS: Final = 1000
CONVERTED_CHARS: Final = 8 << 20
PART_ROWS: Final = 50_000
PART: Final = "part-{:05}.parquet"
PART_BYTES: Final = 32 << 20
"""A part is complete at the first of both; this bounds memory whatever the outputs are."""


def load_pyarrow(purpose: str = "Parquet") -> Any:
    """Import pyarrow with its Parquet part.

    Raises:
        PackageMissing: it is not installed.
    """
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise PackageMissing(f"{purpose} needs pyarrow: pip install 'sandfleet[parquet]'") from None
    return importlib.import_module("pyarrow")


def new_schema(columns: Iterable[Column]) -> Any:
    """Return the schema of a table with these columns; every value may be null."""
    arrow = load_pyarrow()
    text, time = arrow.string(), arrow.timestamp("us", tz="UTC")
    attempt = {"host": text, "worker": text, "code": text, "started": time, "ended": time, "charged": arrow.bool_()}
    attempt["slot"] = arrow.int64()
    attempt["limits"] = arrow.map_(text, arrow.float64())
    artifact = {"path": text, "size": arrow.int64(), "sha256": text, "mode": text, "place": text}
    limit = {"value": arrow.float64(), "enforced": arrow.bool_()}
    types: dict[str, Any] = {
        "text": text,
        "integer": arrow.int64(),
        "number": arrow.float64(),
        "truth": arrow.bool_(),
        "time": time,
        "labels": arrow.map_(text, text),
        "limits": arrow.map_(text, arrow.struct(limit)),
        "attempts": arrow.list_(arrow.struct(attempt)),
        "artifacts": arrow.list_(arrow.struct(artifact)),
    }
    return arrow.schema([(column.name, types[column.kind]) for column in columns])


def new_record_batch(schema: Any, rows: Sequence[dict[str, Any]]) -> Any:
    """Return rows as a record batch of `schema`."""
    new = load_pyarrow().RecordBatch.from_pylist
    try:
        return new(rows, schema)
    except UnicodeEncodeError:
        return new([_clean(row) for row in rows], schema)


def _clean(value: Any) -> Any:
    """Return `value` with half UTF-16 pairs in its texts escaped: they have no UTF-8."""
    match value:
        case str():
            return value if value.isascii() else value.encode(errors="backslashreplace").decode()
        case dict():
            return {key: _clean(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
        case list():
            return [_clean(item) for item in value]  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value


class PartFiles:
    """The parts of a Parquet file, in a folder of their own until the last is written."""

    def __init__(self, folder: Path, columns: Sequence[Column], *, mark: int = 0) -> None:
        """Open the folder, with its first `mark` parts.

        Raises:
            OSError: it cannot be written.
            PackageMissing: pyarrow is not installed.
        """
        self._arrow, self._schema = load_pyarrow(), new_schema(columns)
        self._folder = folder
        self._parts = mark
        if not mark:
            with suppress(FileNotFoundError):
                shutil.rmtree(folder)
        folder.mkdir(exist_ok=True)
        self._rows: list[dict[str, Any]] = []
        self._batches: list[Any] = []
        self._chars = self._bytes = self._count = 0

    @staticmethod
    def has(folder: Path, mark: int) -> bool:
        """Whether the folder of an interrupted table has the first `mark` parts."""
        return all((folder / PART.format(number)).is_file() for number in range(mark))

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Add rows to the part that is under way."""
        self._rows += rows
        self._chars += sum(len(row.get(name) or "") for row in rows for name in ("stdout", "stderr"))
        if len(self._rows) >= CONVERTED_ROWS or self._chars >= CONVERTED_CHARS:
            self._convert()

    def _convert(self) -> None:
        found = new_record_batch(self._schema, self._rows)
        self._rows.clear()
        self._chars = 0
        self._batches.append(found)
        self._bytes += found.nbytes
        self._count += found.num_rows

    def save(self) -> int | None:
        """Write the open part if it is large enough.

        Return the number of parts, None if it is not.
        """
        if self._count < PART_ROWS and self._bytes < PART_BYTES:
            return None
        return self._write_part()

    def _write_part(self) -> int:
        if self._rows:
            self._convert()
        table = self._arrow.Table.from_batches(self._batches, self._schema)
        with self._part(self._parts).open("wb") as file:
            self._arrow.parquet.write_table(table, file, compression="zstd", row_group_size=PART_ROWS)
            file.flush()
            os.fsync(file.fileno())
        self._parts += 1
        self._batches.clear()
        self._bytes = self._count = 0
        return self._parts

    def _part(self, number: int) -> Path:
        return self._folder / PART.format(number)

    def finish(self, path: Path) -> None:
        """Make one file of all parts, one row group after the other, and give it its name."""
        if self._rows or self._batches or not self._parts:
            self._write_part()
        whole = self._part(0)
        if self._parts > 1:
            whole = self._folder / "whole.parquet"
            with self._arrow.parquet.ParquetWriter(whole, self._schema, compression="zstd") as writer:
                for number in range(self._parts):
                    with self._arrow.parquet.ParquetFile(self._part(number)) as part:
                        for group in range(part.num_row_groups):
                            writer.write_table(part.read_row_group(group), PART_ROWS)
        whole.replace(path)
        shutil.rmtree(self._folder)

    def close(self) -> None:
        """Drop the part that is under way; complete parts stay."""
        self._rows.clear()
        self._batches.clear()
