"""Write a batch's table: under a temporary name in its folder, with checkpoints, then rename."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from sandfleet.errors import ResultsNotWritten
from sandfleet.results.columns import choose_columns, new_row, output_columns
from sandfleet.results.lines import LineFile, format_csv, format_json
from sandfleet.results.outputs import Saving
from sandfleet.results.parquet import PartFiles
from sandfleet.results.progress import Progress, ProgressFile
from sandfleet.results.rows import ENDED, BatchRows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sandfleet.channel.protocol import Channel
    from sandfleet.results.rows import BatchJob

Format: TypeAlias = Literal["jsonl", "csv", "parquet"]
FORMATS: Final[Mapping[str, Format]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}


@dataclass(frozen=True)
class TableOptions:
    """The columns of a table (None: all of an outcome), and the folders for files to save."""

    columns: Sequence[str] | None = None
    outputs: Path | None = None
    artifacts: Path | None = None
    overwrite: bool = False
    """Whether saved files replace others that are there."""


@dataclass(frozen=True)
class Written:
    """The counts of a table: its rows, its jobs by state, and the files that were not saved."""

    rows: int
    states: Mapping[str, int] = field(default_factory=dict[str, int])
    not_saved: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether each job has ended and its outcome was there, and all files were saved."""
        return self.states.get(ENDED, 0) == self.rows and not self.not_saved


class _Writer(Protocol):
    def write(self, rows: Sequence[dict[str, Any]]) -> None: ...
    def save(self) -> int | None: ...
    def finish(self, path: Path) -> None: ...
    def close(self) -> None: ...


def find_format(path: Path) -> Format:
    """Return the format that a file's name says.

    Raises:
        ResultsNotWritten: it says none.
    """
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise ResultsNotWritten(f"the format of {path.name} is not known: end its name with .jsonl, .csv or .parquet")
    return found


class BatchTable:
    """The table of one batch."""

    def __init__(
        self,
        channel: Channel,
        name: str,
        options: TableOptions,
        *,
        on_rows: Callable[[int], object] = lambda _: None,
        on_fault: Callable[[str], object] = lambda _: None,
    ) -> None:
        """`on_rows` gets the number of rows so far, `on_fault` the reason if a file was not saved.

        Raises:
            ColumnUnknown: a column does not exist.
            OSError: a folder cannot be made.
        """
        self._channel, self._name, self._options = channel, name, options
        self._on_rows, self._on_fault = on_rows, on_fault
        self._saving = Saving(lambda: channel.objects, options.outputs, options.artifacts, overwrite=options.overwrite)
        in_files = output_columns(self._saving.find_output) if options.outputs is not None else ()
        self.columns = choose_columns(options.columns, in_files)

    def read(self, progress: Progress | None = None) -> Iterator[list[dict[str, Any]]]:
        """Yield rows from where `progress` is, which is kept up to date."""
        progress = progress or Progress()
        needs_records = any(column.needs_record for column in self.columns)
        rows = BatchRows(self._channel, self._name, progress.cursor, progress.relisted, needs_records=needs_records)
        for jobs in rows.read():
            found = [self._new_row(job, progress) for job in jobs]
            progress.cursor, progress.rows = rows.cursor, progress.rows + len(found)
            yield found

    def _new_row(self, job: BatchJob, progress: Progress) -> dict[str, Any]:
        for fault in self._saving.save(job):
            progress.not_saved += 1
            self._on_fault(fault)
        progress.states[job.state] += 1
        return new_row(self.columns, job)

    def write(self, path: Path, kind: Format, *, resume: bool = False) -> Written:
        """Write the table to `path`, which it replaces once it is complete.

        `resume` goes on with what an interrupted call has left.

        Raises:
            ResultsNotWritten: another process writes it, or what was interrupted is another table.
            PackageMissing: Parquet needs pyarrow.
            FleetUnavailable: Redis is out of reach.
            OSError: it cannot be written.
        """
        hidden = path.with_name(f".{path.name}.sandfleet")
        with closing(ProgressFile(hidden.with_name(f"{hidden.name}-state"), self._describe(kind))) as file:
            found = (file.read() if resume else None) or Progress()
            temporary = hidden.with_name(f"{hidden.name}-part{'s' if kind == 'parquet' else ''}")
            if not (PartFiles if kind == "parquet" else LineFile).has(temporary, found.mark):
                found = Progress()
            with closing(self._open(temporary, kind, found.mark)) as writer:
                file.start(found)
                self._write_all(writer, found, file)
                writer.finish(path)
            file.remove()
        return Written(found.rows, dict(found.states), found.not_saved)

    def _describe(self, kind: Format) -> dict[str, Any]:
        names = [column.name for column in self.columns]
        folders = {"outputs": self._options.outputs, "artifacts": self._options.artifacts}
        absolute = {name: None if folder is None else str(folder.absolute()) for name, folder in folders.items()}
        return {"batch": self._name, "format": kind, "columns": names, **absolute}

    def _open(self, temporary: Path, kind: Format, mark: int) -> _Writer:
        if kind == "parquet":
            return PartFiles(temporary, self.columns, mark=mark)
        return LineFile(temporary, self.columns, is_csv=kind == "csv", mark=mark)

    def _write_all(self, writer: _Writer, progress: Progress, file: ProgressFile) -> None:
        for rows in self.read(progress):
            writer.write(rows)
            self._on_rows(progress.rows)
            if (mark := writer.save()) is not None:
                progress.mark = mark
                file.add(progress)

    def write_to(self, file: IO[bytes], kind: Literal["jsonl", "csv"]) -> Written:
        """Write the table to an open file, such as stdout."""
        progress = Progress()
        if kind == "csv":
            file.write(format_csv([{column.name: column.name for column in self.columns}]))
        for rows in self.read(progress):
            file.write(format_csv(rows) if kind == "csv" else format_json(rows))
            file.flush()
            self._on_rows(progress.rows)
        return Written(progress.rows, dict(progress.states), progress.not_saved)
