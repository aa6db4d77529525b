"""`Tabular`: the table of a batch, as `Batch` offers it."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandfleet.errors import PackageMissing
from sandfleet.results.parquet import load_pyarrow, new_record_batch, new_schema
from sandfleet.results.table import BatchTable, TableOptions, find_format
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from sandfleet.channel.protocol import Channel
    from sandfleet.results.table import Written


class Tabular:
    """Part of `Batch`: one row a job, in the order of submit."""

    def __init__(self, name: str, channel: Channel) -> None:
        self.name = name
        self._channel = channel

    def table(
        self,
        options: TableOptions | None = None,
        *,
        on_rows: Callable[[int], object] = lambda _: None,
        on_fault: Callable[[str], object] = lambda _: None,
    ) -> BatchTable:
        """Return the table, for callers that choose the format; its methods write it.

        Raises:
            ColumnUnknown: there is no such column.
            OSError: a folder for files cannot be made.
        """
        return BatchTable(self._channel, self.name, options or TableOptions(), on_rows=on_rows, on_fault=on_fault)

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """Yield one row for each job, as it is now; memory does not grow with the batch.

        `columns` are those of the page "Batches", by default all that an outcome has;
        ``labels.KEY`` is one label. The column ``state`` is ``ended`` or tells why there is no
        outcome.

        Raises:
            ColumnUnknown: there is no such column.
            FleetUnavailable: Redis is out of reach.
        """
        for rows in self.table(TableOptions(columns)).read():
            yield from rows

    def save_results(
        self,
        path: str | os.PathLike[str],
        *,
        columns: Sequence[str] | None = None,
        outputs: str | os.PathLike[str] | None = None,
        artifacts: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        resume: bool = False,
        on_rows: Callable[[int], object] = lambda _: None,
        on_fault: Callable[[str], object] = lambda _: None,
    ) -> Written:
        """Write the table to a file ``.jsonl``, ``.csv`` or ``.parquet``.

        It replaces the file once the table is complete. `outputs` and `artifacts` are folders: the
        files of each job go to its ``JOB_ID``. `overwrite` replaces other files there. `resume`
        goes on with what an interrupted call of the same options has left. `on_rows` gets the
        number of rows so far, `on_fault` why a file was not saved.

        Raises:
            ColumnUnknown: there is no such column.
            ResultsNotWritten: the name tells no format; another process writes this file; or what
            was
                interrupted is another table.
            PackageMissing: Parquet needs ``sandfleet[parquet]``.
            FleetUnavailable: Redis or the store is out of reach.
            OSError: a file cannot be written.
        """
        options = TableOptions(columns, _to_path(outputs), _to_path(artifacts), overwrite)
        target = Path(path)
        table = self.table(options, on_rows=on_rows, on_fault=on_fault)
        return table.write(target, find_format(target), resume=resume)

    save_results_async = in_thread(save_results)

    def to_pandas(self, columns: Sequence[str] | None = None) -> Any:
        """Return the table as a pandas ``DataFrame``; integers and truth values may be ``<NA>``.

        Raises:
            ColumnUnknown: there is no such column.
            PackageMissing: it needs ``sandfleet[pandas]``.
            FleetUnavailable: Redis is out of reach.
        """
        arrow = load_pyarrow("to_pandas")
        try:
            pandas: Any = importlib.import_module("pandas")
        except ImportError:
            raise PackageMissing("to_pandas needs pandas: pip install 'sandfleet[pandas]'") from None
        table = self.table(TableOptions(columns))
        schema = new_schema(table.columns)
        whole = arrow.Table.from_batches([new_record_batch(schema, rows) for rows in table.read()], schema)
        nullable = {arrow.int64(): pandas.Int64Dtype(), arrow.bool_(): pandas.BooleanDtype()}
        return whole.to_pandas(types_mapper=nullable.get, maps_as_pydicts="strict")

    to_pandas_async = in_thread(to_pandas)


def _to_path(name: str | os.PathLike[str] | None) -> Path | None:
    return None if name is None else Path(name)
