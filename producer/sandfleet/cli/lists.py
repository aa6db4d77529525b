"""``sandfleet batches``, and what lists of batches and jobs have in common."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer
from sandfleet_config.codes import ErrorCode

from sandfleet.cli import completion
from sandfleet.cli.listing import ListOptions
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.rows import Columns, Limit, format_age, format_duration, print_rows, take
from sandfleet.cli.show import note
from sandfleet.cli.typed import read_labels
from sandfleet.cli.watching import WatchCommand, print_watched
from sandfleet.fleet import Fleet
from sandfleet.overview.fields import batch_fields, job_fields
from sandfleet.overview.job_filter import JobFilter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.overview.summary import BatchSummary

Codes = Annotated[
    list[str] | None,
    typer.Option(
        "--code",
        help="Jobs that ended so, such as TIMEOUT,WORKER_LOST; repeatable.",
        autocompletion=completion.complete_code,
    ),
]
Categories = Annotated[
    list[str] | None, typer.Option("--category", help="Jobs that ended by program, limit, request, control or host.")
]
States = Annotated[
    list[str] | None,
    typer.Option(
        "--state", help="queued, waiting, running or ended; repeatable.", autocompletion=completion.complete_state
    ),
]
app = typer.Typer(rich_markup_mode=None)


def split_words(words: Sequence[str] | None) -> list[str]:
    """Split ``A,B`` and repeated options into single words."""
    return [part.strip() for word in words or () for part in word.split(",") if part.strip()]


def read_filter(
    codes: Sequence[str] | None,
    categories: Sequence[str] | None,
    labels: Sequence[str] | None,
    states: Sequence[str] | None = None,
    host: str = "",
) -> JobFilter:
    """Build the filter of the options.

    Raises:
        typer.BadParameter: a name is not known.
    """
    try:
        return JobFilter.of(
            codes=split_words(codes),
            categories=split_words(categories),
            states=split_words(states),
            labels=read_labels(labels or []),
            host=host,
        )
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


@dataclass(frozen=True, kw_only=True)
class BatchesOptions(ListOptions):
    """The command line of ``sandfleet batches``."""

    limit: Limit = 50


@app.command(cls=WatchCommand)
@takes_fields(BatchesOptions)
def batches(line: BatchesOptions) -> None:
    """List the batches, the last used first: their jobs, how many have ended, and how."""
    with Fleet() as fleet:

        def show() -> None:
            rows, has_more = take(fleet.batches(), line.limit)
            if not print_rows(rows, BATCHES, line.shown, is_whole=line.is_whole):
                note("there are no batches")
            elif has_more():
                note(f"there are more batches than the {line.limit} shown: -n 0 lists all")

        print_watched(show, line.watch, line.shown)


def _job_cells(job: JobFacts) -> Mapping[str, str]:
    is_ended = job.state == "ended"
    return {
        "ID": job.job_id,
        "STATE": job.code.value if is_ended and job.code else job.state,
        "NAME": job.name,
        "HOST": job.host or "-",
        "TIME": format_duration(job.count_seconds()),
        "SUBMITTED": format_age(job.submitted, time.time()),
    }


def _job_wide(job: JobFacts) -> Mapping[str, str]:
    return {
        "RUN": str(job.run),
        "ATTEMPTS": str(len(job.attempts)),
        "QUEUE": job.queue,
        "IMAGE": job.image,
        "LABELS": ",".join(f"{key}={value}" for key, value in job.labels.items()),
    }


def _batch_cells(batch: BatchSummary) -> Mapping[str, str]:
    return {
        "BATCH": batch.name,
        "STATE": batch.state,
        "JOBS": str(batch.total),
        "ENDED": str(batch.ended),
        "OK": str(batch.ok),
        "FAILED": str(batch.failed),
        "USED": format_age(batch.used, time.time()),
    }


def _batch_wide(batch: BatchSummary) -> Mapping[str, str]:
    failed = {code: count for code, count in batch.codes.items() if code != ErrorCode.OK.value}
    return {
        "LAST END": format_age(batch.last_end, time.time()),
        "FAILURES": ", ".join(f"{count} {code}" for code, count in sorted(failed.items())) or "-",
    }


JOBS: Final = Columns["JobFacts"](job_fields, _job_cells, _job_wide, lambda job: job.job_id)
BATCHES: Final = Columns["BatchSummary"](batch_fields, _batch_cells, _batch_wide, lambda batch: batch.name)
