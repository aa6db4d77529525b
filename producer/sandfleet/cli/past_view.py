"""Show a job that Redis does not know any more, from the history."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sandfleet_config.units import format_bytes

from sandfleet.cli.rows import format_duration
from sandfleet.cli.show import note, print_lines
from sandfleet.errors import HistoryUnavailable
from sandfleet.history.fields import run_fields
from sandfleet.history.finding import find_history
from sandfleet.history.words import format_time

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.history.questions import PastRun


def show_past(job_id: str, run: int | None, *, is_json: bool) -> bool:
    """Print a run of a job, by default the newest; return whether the history knows it."""
    if not job_id.isprintable():  # no job has such an id, and SQLite takes no bytes that are not UTF-8
        return False
    try:
        runs = find_history().runs_of(job_id)
    except HistoryUnavailable:
        return False
    found = next((one for one in runs if run in (None, one.run)), None)
    if found is None:
        return False
    if is_json:
        print(json.dumps(run_fields(found), indent=2))
    else:
        print_lines(list(_list_lines(found)))
    note("its outcome has expired, with its output: this is from the history")
    return True


def _list_lines(run: PastRun) -> Iterator[tuple[str, str]]:
    yield "job", run.job_id
    if run.run > 1:
        yield "run", str(run.run)
    yield "code", run.code if run.exit_code is None else f"{run.code}, exit {run.exit_code}"
    if run.message:
        yield "message", run.message
    yield "ran", run.line or "-"
    for name, value in (("image", run.image), ("digest", run.image_digest), ("batch", run.batch), ("queue", run.queue)):
        if value:
            yield name, value
    if run.labels:
        yield "labels", ", ".join(f"{key}={value}" for key, value in run.labels.items())
    yield from _list_times(run)
    if run.cpu_seconds is not None:
        yield "cpu", format_duration(run.cpu_seconds)
    if run.memory_peak_bytes is not None:
        yield "memory", f"{format_bytes(run.memory_peak_bytes)} of {format_bytes(run.memory_bytes)}"
    for attempt in run.attempts:
        charged = "" if attempt.charged else ", not charged"
        yield (
            "attempt",
            f"{attempt.host} ({attempt.worker}) {format_time(attempt.started)}: {attempt.code or '-'}{charged}",
        )


def _list_times(run: PastRun) -> Iterator[tuple[str, str]]:
    for name, at in (("submitted", run.submitted), ("started", run.started), ("ended", run.ended)):
        if at:
            yield name, format_time(at)
    if run.started:
        yield "time", format_duration(run.seconds)
    if run.start:
        yield "start", run.start
