"""``sandfleet jobs``: jobs that have not ended, from Redis, then ended ones, from the history."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import typer

from sandfleet.channel.job_facts import JobFacts
from sandfleet.cli import opening
from sandfleet.cli.listing import ListOptions
from sandfleet.cli.lists import JOBS, States, read_filter
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.past_options import PastOptions
from sandfleet.cli.rows import Columns, Form, Limit, format_age, format_duration, print_rows, take
from sandfleet.cli.show import note
from sandfleet.cli.watching import WatchCommand, print_watched
from sandfleet.errors import BatchUnknown, HistoryUnavailable
from sandfleet.history.fields import run_fields
from sandfleet.history.finding import find_history
from sandfleet.history.questions import MAX_DEPTH, MAX_PAGE, HistoryFilter, PastRun
from sandfleet.history.words import Words
from sandfleet.overview.fields import job_fields

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet.batch import Batch as FleetBatch
    from sandfleet.fleet import Fleet
    from sandfleet.history.questions import History

FIRST_PAGE: Final = 100
app = typer.Typer(rich_markup_mode=None)
Row: TypeAlias = JobFacts | PastRun


@dataclass(frozen=True, kw_only=True)
class JobsOptions(ListOptions, PastOptions):
    """The command line of ``sandfleet jobs``."""

    state: States = None
    limit: Limit = 50


@app.command(cls=WatchCommand)
@takes_fields(JobsOptions)
def jobs(line: JobsOptions) -> None:
    """List jobs that match: those that have not ended, then ended ones, the newest end first.

    Of a batch that Redis has: in the order of submit; with a code or category, of their ends. Ended
    jobs of other batches come from the history (sandfleet-web); of each queue the next 200 jobs.
    """
    wanted = line.read_words()
    with opening.open_fleet() as fleet:
        batch_here = find_batch(fleet, wanted)

        def show() -> None:
            rows = _list_batch(batch_here, wanted) if batch_here else _list_all(fleet, wanted)
            where = f" of batch {line.batch}" if line.batch else ""
            _print(rows, JOBS if batch_here else ALL_JOBS, (line.shown, line.limit, where), is_whole=line.is_whole)

        print_watched(show, line.watch, line.shown)


def _print(rows: Iterator[Any], columns: Columns[Any], how: tuple[Form, int, str], *, is_whole: bool) -> None:
    """Print rows; `how` is the form, how many, and where for the case of none."""
    form, limit, where = how
    some, has_more = take(rows, limit)
    if not print_rows(some, columns, form, is_whole=is_whole):
        note(f"no job{where} matches")
    elif has_more():
        note(f"there are more such jobs than the {limit} shown: -n 0 lists all")


def find_batch(fleet: Fleet, wanted: Words) -> FleetBatch | None:
    """Return the batch if Redis has it, and can answer all that is asked for."""
    asked = wanted.wanted
    plain = HistoryFilter(
        batch=asked.batch, codes=asked.codes, categories=asked.categories, labels=asked.labels, host=asked.host
    )
    if not asked.batch or asked != plain:
        return None
    try:
        return fleet.batch(asked.batch)
    except BatchUnknown:
        return None


def _list_batch(batch: FleetBatch, wanted: Words) -> Iterator[Any]:
    asked = wanted.wanted
    chosen = read_filter([*asked.codes], [*asked.categories], None, [*wanted.states], asked.host)
    return iter(
        batch.find_jobs(
            codes=chosen.codes,
            categories=chosen.categories,
            states=chosen.states,
            labels=asked.labels,
            host=chosen.host,
        )
    )


def _list_all(fleet: Fleet, wanted: Words) -> Iterator[Row]:
    """Yield what has not ended, then what has, as far as a history is in reach."""
    asked, seen, cut = wanted.wanted, set[str](), list[str]()
    for job in fleet.find_open(wanted, tell=cut.append):
        seen.add(job.job_id)
        yield job
    for sentence in cut:
        note(f"not all that wait are listed: {sentence}")
    if wanted.states and "ended" not in wanted.states:
        return
    try:
        for run in _read_past(find_history(), asked):
            if run.job_id not in seen:
                yield run
    except HistoryUnavailable as error:
        note(f"ended jobs are not listed: {error}")


def _read_past(history: History, asked: HistoryFilter) -> Iterator[PastRun]:
    """Yield ended runs page by page, of each job the newest."""
    newest, cursor, count = replace(asked, is_newest=True), "", 0
    while True:
        page = history.find_runs(newest, count=MAX_PAGE if cursor else FIRST_PAGE, cursor=cursor)
        yield from page.rows
        cursor, count = page.cursor, count + len(page.rows)
        if not cursor:
            break
    if count >= MAX_DEPTH:
        note(
            f"these are the newest {MAX_DEPTH} that have ended: narrow the filter, or see sandfleet-web history export"
        )


def list_fields(row: Row) -> dict[str, Any]:
    """Return a job for programs, ended or not, with the same names."""
    if isinstance(row, PastRun):
        return run_fields(row)
    return dict.fromkeys(RUN_NAMES) | job_fields(row)


def _list_cells(row: Row) -> Mapping[str, str]:
    if not isinstance(row, PastRun):
        return JOBS.table(row)
    return {
        "ID": row.job_id,
        "STATE": row.code,
        "NAME": row.labels.get("name") or row.line or row.job_id,
        "HOST": row.host or "-",
        "TIME": format_duration(row.seconds if row.started else None),
        "SUBMITTED": format_age(row.submitted, time.time()),
    }


def _list_wide(row: Row) -> Mapping[str, str]:
    if not isinstance(row, PastRun):
        return {**JOBS.wide(row), "BATCH": row.batch or "-", "ENDED": "-", "MESSAGE": row.why or "-"}
    return {
        "RUN": str(row.run),
        "ATTEMPTS": str(row.attempt_count),
        "QUEUE": row.queue,
        "IMAGE": row.image,
        "LABELS": ",".join(f"{key}={value}" for key, value in row.labels.items()),
        "BATCH": row.batch or "-",
        "ENDED": format_age(row.ended, time.time()),
        "MESSAGE": row.message or "-",
    }


RUN_NAMES: Final = tuple(
    run_fields(PastRun(number=0, job_id="", run=1, code="", category="", submitted=0, started=0, ended=0))
)
ALL_JOBS: Final = Columns[Row](list_fields, _list_cells, _list_wide, lambda row: row.job_id)
