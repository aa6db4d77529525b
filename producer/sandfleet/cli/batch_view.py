"""Show one batch: counts by code, rate, time left, and the last failures."""

from __future__ import annotations

import json
import shlex
import time
from typing import TYPE_CHECKING, Final

from sandfleet_config.codes import ErrorCode

from sandfleet.cli.batch_control import limit_lines
from sandfleet.cli.lists import BATCHES
from sandfleet.cli.rows import Form, format_age, format_duration, print_rows
from sandfleet.cli.show import print_lines, print_summary, safe_line
from sandfleet.overview.fields import batch_fields, job_fields

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.batch import Batch
    from sandfleet.overview.summary import BatchSummary

BAR: Final = 40


def show_batch(batch: Batch, form: Form) -> None:
    """Print a batch; its ids with `Form.IDS`."""
    if form is Form.IDS:
        for job_id in batch.iter_ids():
            print(job_id)
        return
    summary = batch.summary()
    match form:
        case Form.TABLE | Form.WIDE:
            print_lines([*_summary_lines(summary), *limit_lines(batch)])
            print_summary(
                {code: summary.codes[code.value] for code in ErrorCode if code.value in summary.codes}, is_output=True
            )
            _print_failures(summary)
        case Form.JSON:
            print(json.dumps(_summary_fields(summary), indent=2))
        case _:
            print_rows([summary], BATCHES, form)


def show_as_before(batch: Batch) -> None:
    """Print the one JSON object of earlier releases; it has the ids of all jobs."""
    summary = batch.summary()
    counts = {"total": summary.total, "done": summary.ended, "sealed": summary.is_sealed}
    print(json.dumps({"batch": batch.name, **counts, "codes": dict(summary.codes), "job_ids": batch.job_ids}, indent=2))


def _summary_lines(summary: BatchSummary) -> Iterator[tuple[str, str]]:
    now = time.time()
    yield "batch", summary.name
    yield "state", summary.state
    yield "jobs", f"{summary.total}" if summary.is_sealed else f"{summary.total} so far"
    yield "ended", describe_progress(summary)
    yield "not ended", str(summary.left)
    if summary.used:
        yield "submitted", f"{format_age(summary.used, now)} (the last submit or retry)"
    if summary.last_end:
        yield "last end", format_age(summary.last_end, now)


def describe_progress(summary: BatchSummary) -> str:
    """Return ``9540 of 10000, 3.1 a second, 3m left``."""
    words = [f"{summary.ended} of {summary.total}"]
    if summary.rate and summary.left:
        words += [f"{summary.rate:.1f} a second", f"about {format_duration(summary.seconds_left)} left"]
    return ", ".join(words)


def _summary_fields(summary: BatchSummary) -> dict[str, object]:
    more: dict[str, object] = {
        "rate": round(summary.rate, 3),
        "seconds_left": summary.seconds_left,
        "last_failures": [job_fields(job) for job in summary.last_failures],
    }
    return batch_fields(summary) | more


def _print_failures(summary: BatchSummary) -> None:
    if not summary.last_failures:
        return
    print("\nlast failures (sandfleet show ID says more):")
    for job in summary.last_failures:
        code = job.code.value if job.code else job.state
        print(f"{job.job_id}  {code}  {safe_line(job.name)}")
    name = shlex.quote(safe_line(summary.name))
    codes = [code for code in summary.codes if code not in {ErrorCode.OK.value, ErrorCode.CANCELLED.value}]
    if codes and all(job.code is ErrorCode.CANCELLED for job in summary.last_failures):
        print(f"\nto list those that failed before: sandfleet jobs --batch {name} --code {','.join(codes)}")
    print(f"\nto run what failed again: sandfleet batch retry {name} --dry-run")
