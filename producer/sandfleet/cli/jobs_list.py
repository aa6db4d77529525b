"""``sandfleet jobs``: jobs that have not ended, from Redis, then ended ones, from the history."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import typer

from sandfleet.channel.job_facts import JobFacts
from sandfleet.cli import opening, options
from sandfleet.cli.lists import JOBS, Categories, Codes, States, read_filter
from sandfleet.cli.past_options import Batch, Exit, Filter, Host, Image, Queue, Since, Text, Until, read_words
from sandfleet.cli.rows import (
    Columns,
    Form,
    FormOption,
    Limit,
    NoTrunc,
    Quiet,
    format_age,
    format_duration,
    print_rows,
    take,
)
from sandfleet.cli.show import note
from sandfleet.cli.watching import Watch, WatchCommand, print_watched
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


@app.command(cls=WatchCommand)
def jobs(
    *,
    batch: Batch = "",
    code: Codes = None,
    category: Categories = None,
    state: States = None,
    label: options.Labels = None,
    host: Host = "",
    queue: Queue = "",
    image: Image = "",
    exit_code: Exit = "",
    since: Since = "",
    until: Until = "",
    text: Text = "",
    words: Filter = None,
    form: FormOption = Form.TABLE,
    is_quiet: Quiet = False,
    is_whole: NoTrunc = False,
    limit: Limit = 50,
    watch: Watch = None,
) -> None:
    """List jobs that match: those that have not ended, then ended ones, the newest end first.

    Of a batch that Redis has: in the order of submit; with a code or category, of their ends. Ended
    jobs of other batches come from the history (sandfleet-web); of the queues the next 200 jobs.
    """
    named = {"batch": batch, "host": host, "queue": queue, "image": image, "exit": exit_code}
    named |= {"since": since, "until": until}
    wanted = read_words(named, {"code": code, "category": category, "state": state}, label, words, text)
    shown = Form.IDS if is_quiet else form
    with opening.open_fleet() as fleet:
        batch_here = find_batch(fleet, wanted)

        def show() -> None:
            rows = _list_batch(batch_here, wanted) if batch_here else _list_all(fleet, wanted)
            where = f" of batch {batch}" if batch else ""
            _print(rows, JOBS if batch_here else ALL_JOBS, (shown, limit, where), is_whole=is_whole)

        print_watched(show, watch, shown)


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
    asked, seen = wanted.wanted, set[str]()
    may_be_open = not (asked.codes or asked.categories or asked.fingerprint or asked.until is not None)
    if may_be_open and asked.exit_code is None and wanted.states != frozenset(("ended",)):
        now = time.time()
        for job in fleet.open_jobs(queue=asked.queue, host=asked.host):
            seen.add(job.job_id)
            if takes_open(job, wanted, now):
                yield job
    if wanted.states and "ended" not in wanted.states:
        return
    try:
        for run in _read_past(find_history(), asked):
            if run.job_id not in seen:
                yield run
    except HistoryUnavailable as error:
        note(f"ended jobs are not listed: {error}")


def takes_open(job: JobFacts, wanted: Words, now: float) -> bool:
    """Whether a job that has not ended matches."""
    asked = wanted.wanted
    is_named = asked.batch in {"", job.batch} and asked.job_id in {"", job.job_id} and asked.image in {"", job.image}
    is_labelled = all(job.labels.get(key) == value for key, value in asked.labels.items())
    is_long = not asked.min_seconds or (job.count_seconds(now) or 0.0) >= asked.min_seconds
    has_text = asked.text.casefold() in job.line.casefold()
    is_tried = len(job.attempts) >= asked.min_attempts
    return (
        is_named
        and is_labelled
        and is_long
        and has_text
        and is_tried
        and (not wanted.states or job.state in wanted.states)
    )


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
