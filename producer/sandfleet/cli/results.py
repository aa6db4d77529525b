"""``sandfleet batch results``: the table of a batch, as a file or on stdout."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer
from sandfleet_config.units import format_count

from sandfleet.cli import options
from sandfleet.cli.exits import INTERRUPTED, SOME_NOT_OK, TIMEOUT
from sandfleet.cli.jsonl import STDIN
from sandfleet.cli.show import note
from sandfleet.errors import FleetUnavailable, PackageMissing, ResultsNotWritten, ResultTimeout
from sandfleet.fleet import Fleet
from sandfleet.results.columns import ColumnUnknown
from sandfleet.results.rows import ENDED, FORGOTTEN
from sandfleet.results.table import FORMATS, TableOptions, find_format

if TYPE_CHECKING:
    from sandfleet.batch import Batch
    from sandfleet.channel.records import BatchState
    from sandfleet.results.table import BatchTable, Written

STDOUT_FORMATS: Final = ("jsonl", "csv")
TOLD_SECONDS: Final = 5.0
TOLD_FAULTS: Final = 20


class ResultOptions(NamedTuple):
    """Where a table goes (``-`` is stdout), and how."""

    out: str
    kind: str | None
    is_resumed: bool


class _Told:
    """Prints progress on stderr now and then, and the first files that were not saved."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._faults = 0

    def _is_due(self) -> bool:
        if time.monotonic() - self._at < TOLD_SECONDS:
            return False
        self._at = time.monotonic()
        return True

    def count(self, state: BatchState) -> None:
        if self._is_due():
            note(f"{state.ended} of {format_count(state.total, 'job')} ended")

    def rows(self, number: int) -> None:
        if self._is_due():
            note(f"{format_count(number, 'row')} written")

    def fault(self, text: str) -> None:
        self._faults += 1
        if self._faults <= TOLD_FAULTS:
            note(f"not saved: {text}")
        elif self._faults == TOLD_FAULTS + 1:
            note("more files were not saved; their number is told at the end")


def results(
    name: options.BatchName,
    *,
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="FILE", help="A file .jsonl, .csv or .parquet; default - is stdout.")
    ] = STDIN,
    columns: Annotated[
        str | None,
        typer.Option(metavar="NAME,...", help="The columns, such as job_id,labels.seed,code,stdout; default: all."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option("--format", help="jsonl (default) or csv, on stdout; of a file its name says it.")
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(metavar="DIR", help="Save stdout and stderr in DIR/ID, not in the table.")
    ] = None,
    artifacts: Annotated[str | None, typer.Option(metavar="DIR", help="Save the artifacts in DIR/ID.")] = None,
    overwrite: options.Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with what an interrupted call with these options has written.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until all jobs have ended; Ctrl-C stops waiting.")] = False,
    timeout: options.WaitTimeout = None,
) -> None:
    """Write one row for each job, in order of submit; exits 1 if an outcome or file is lacking."""
    if timeout is not None and not wait:
        raise typer.BadParameter("needs --wait", param_hint="--timeout")
    if overwrite and outputs is None and artifacts is None:
        raise typer.BadParameter("needs --outputs or --artifacts", param_hint="--overwrite")
    how = ResultOptions(out, kind, resume)
    _check_target(how)
    chosen = None if columns is None else [word.strip() for word in columns.split(",") if word.strip()]
    wanted = TableOptions(chosen, _to_path(outputs), _to_path(artifacts), overwrite)
    with Fleet() as fleet:
        batch = fleet.batch(name)
        told = _Told()
        table = _new_table(batch, wanted, told)
        if wait and (status := _wait(batch, timeout, told)):
            raise typer.Exit(status)
        raise typer.Exit(_write(table, how, name))


def _check_target(how: ResultOptions) -> None:
    if how.out == STDIN:
        if how.is_resumed:
            raise typer.BadParameter("needs -o FILE", param_hint="--resume")
        if how.kind not in (None, *STDOUT_FORMATS):
            raise typer.BadParameter("stdout takes jsonl or csv; parquet needs -o FILE", param_hint="--format")
        return
    if not Path(how.out).parent.is_dir():
        raise typer.BadParameter(f"there is no folder {Path(how.out).parent}: make it first", param_hint="--out")
    suffix = FORMATS.get(Path(how.out).suffix.lower())
    if how.kind is not None and how.kind != suffix:
        raise typer.BadParameter(f"the name of a file says its format: {how.out} is {suffix or 'of none'}")
    try:
        find_format(Path(how.out))
    except ResultsNotWritten as error:
        raise typer.BadParameter(error.message, param_hint="--out") from None


def _new_table(batch: Batch, wanted: TableOptions, told: _Told) -> BatchTable:
    try:
        return batch.table(wanted, on_rows=told.rows, on_fault=told.fault)
    except ColumnUnknown as error:
        raise typer.BadParameter(str(error), param_hint="--columns") from None


def _wait(batch: Batch, timeout: float | None, told: _Told) -> int:
    try:
        batch.wait(timeout, on_counts=told.count)
    except KeyboardInterrupt:
        note("stopped waiting; nothing was written, and the jobs go on")
        return INTERRUPTED
    except ResultTimeout as error:
        note(f"{error}; nothing was written, and the jobs go on")
        return TIMEOUT
    return 0


def _write(table: BatchTable, how: ResultOptions, name: str) -> int:
    """Write the table; return the exit code."""
    try:
        if how.out == STDIN:
            written = table.write_to(sys.stdout.buffer, "csv" if how.kind == "csv" else "jsonl")
        else:
            path = Path(how.out)
            written = table.write(path, find_format(path), resume=how.is_resumed)
    except PackageMissing as error:
        raise typer.BadParameter(error.message, param_hint="--out") from None
    except (KeyboardInterrupt, FleetUnavailable, OSError) as error:
        if how.out != STDIN:
            note(f"stopped; {how.out} was not written. To go on, repeat the command with --resume")
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED
        raise
    _sum_up(written, how, name)
    return 0 if written.is_complete else SOME_NOT_OK


def _sum_up(written: Written, how: ResultOptions, name: str) -> None:
    if how.out != STDIN:
        note(f"{format_count(written.rows, 'row')} in {how.out}")
    pending = written.rows - written.states.get(ENDED, 0) - written.states.get(FORGOTTEN, 0)
    if pending:
        waiting = shlex.join(["sandfleet", "batch", "results", name, "--wait"])
        note(f"{format_count(pending, 'job has', 'jobs have')} not ended: the rows say so. To wait: {waiting}")
    if forgotten := written.states.get(FORGOTTEN, 0):
        note(f"{format_count(forgotten, 'job has', 'jobs have')} ended, but the outcomes are gone: the rows say so")
    if written.not_saved:
        note(f"{format_count(written.not_saved, 'file was', 'files were')} not saved")


def _to_path(name: str | None) -> Path | None:
    return None if name is None else Path(name)
