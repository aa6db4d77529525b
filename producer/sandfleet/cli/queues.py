"""``sandfleet queues``: list the queues, look at one, pause it and let it go on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, NamedTuple

import typer

from sandfleet.cli import opening
from sandfleet.cli.acting import DryRun, new_operator
from sandfleet.cli.exits import SOME_NOT_OK
from sandfleet.cli.listing import ListOptions
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.rows import (
    Columns,
    Form,
    FormOption,
    Limit,
    format_age,
    format_duration,
    print_rows,
    take,
)
from sandfleet.cli.show import note, print_lines, safe_line
from sandfleet.cli.watching import WatchGroup, print_watched
from sandfleet.overview.fields import queue_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandfleet.channel.fleet_state import FleetSummary, Pause, QueueState

SHOWN_JOBS: Final = 10
QueueName = Annotated[str, typer.Argument(metavar="QUEUE")]
Note = Annotated[str, typer.Option("--note", "--reason", "-r", help="Why; others see it.")]
app = typer.Typer(
    cls=WatchGroup,
    invoke_without_command=True,
    rich_markup_mode=None,
    help="List the queues: what waits, for how long, who takes it; look at one, pause it, resume it.",
)


class _Row(NamedTuple):
    """A queue, and the time at which it was read."""

    queue: QueueState
    at: float


def list_rows(summary: FleetSummary) -> list[_Row]:
    """Return the queues, those whose jobs have waited longest first."""
    ordered = sorted(summary.queues, key=lambda queue: (queue.oldest or float("inf"), queue.name))
    return [_Row(queue, summary.at) for queue in ordered]


@dataclass(frozen=True, kw_only=True)
class QueuesOptions(ListOptions):
    """The command line of ``sandfleet queues``."""

    ctx: typer.Context


@app.callback()
@takes_fields(QueuesOptions)
def list_queues(line: QueuesOptions) -> None:
    """List the queues: what waits, for how long, who takes it; look at one, pause it, resume it."""
    if line.ctx.invoked_subcommand is not None:
        return
    with opening.open_fleet() as fleet:

        def show() -> None:
            summary = fleet.state.read_summary()
            rows, has_more = take(list_rows(summary), line.limit)
            print_rows(rows, QUEUES, line.shown, is_whole=line.is_whole)
            if has_more():
                note(f"there are more queues than the {line.limit} shown: -n 0 lists all")
            for name in find_unserved(summary):
                note(f"no live worker takes jobs of the queue {name}: see SANDFLEET_QUEUES of the hosts")

        print_watched(show, line.watch, line.shown)


def find_unserved(summary: FleetSummary) -> list[str]:
    """Return the queues with jobs that no live worker takes."""
    return [queue.name for queue in summary.queues if queue.total and not queue.is_served]


@app.command()
def show(queue: QueueName, *, form: FormOption = Form.TABLE, limit: Limit = SHOWN_JOBS) -> None:
    """Show a queue: what waits by priority, since when, and the next jobs. -o ids lists their ids."""
    with opening.open_fleet() as fleet:
        operator, summary = new_operator(fleet), fleet.state.read_summary()
        preview = operator.preview_queue(queue)
        row = next((row for row in list_rows(summary) if row.queue.name == queue), None)
        if row is None:
            note(f"nothing waits in {queue}, and no worker names it")
            raise typer.Exit(SOME_NOT_OK)
        ids = fleet.state.queued_ids(queue, 0, limit or row.queue.total)
        if form is Form.IDS:
            for job_id in ids:
                print(safe_line(job_id))
        elif form in {Form.JSON, Form.JSONL}:
            expiring = {"in_hour": preview.expire_in_hour, "in_day": preview.expire_in_day}
            fields = queue_fields(*row) | {"expiring": expiring, "next": ids}
            print(json.dumps(fields, indent=2 if form is Form.JSON else None))
        else:
            expire = f"{preview.expire_in_hour} within an hour, {preview.expire_in_day} within a day"
            print_lines(_describe(row, expire, ids))


@app.command()
def pause(queue: QueueName, *, reason: Note, is_dry: DryRun = False) -> None:
    """Let no job of a queue start until resume; submits go on, and jobs expire as ever.

    It says how many would expire meanwhile.
    """
    with opening.open_fleet() as fleet:
        operator = new_operator(fleet)
        if is_dry:
            print(f"would pause: {safe_line(operator.preview_queue(queue).text)}")
            return
        print(f"{safe_line(queue)} is paused: {safe_line(operator.pause(queue, reason).text)}")


@app.command()
def resume(queue: QueueName, *, reason: Annotated[str, typer.Option("--note", "-r", help="Why.")] = "") -> None:
    """Let jobs of a paused queue start again."""
    with opening.open_fleet() as fleet:
        result = new_operator(fleet).resume(queue, reason)
        print(f"jobs of {safe_line(queue)} start again" if result.done else safe_line(result.text))


def _describe(row: _Row, expire: str, ids: list[str]) -> Iterator[tuple[str, str]]:
    queue, now = row
    yield "queue", queue.name
    yield "state", _name_state(queue)
    if queue.pause is not None:
        yield "mark", describe_pause(queue.pause, now)
    yield "waiting", str(queue.total)
    for step, count in queue.waiting.items():
        if count:
            yield f"priority {step}", str(count)
    yield "oldest", format_age(queue.oldest, now)
    yield "expire", expire
    yield "workers", str(queue.workers)
    for job_id in ids:
        yield "next", job_id


def describe_pause(pause: Pause, now: float) -> str:
    """Return the mark on a queue in one line."""
    return f"paused by {pause.by or '?'} {format_age(pause.at, now)}: {pause.note or '?'}"


def _name_state(queue: QueueState) -> str:
    if queue.pause is not None:
        return "paused"
    return "served" if queue.is_served else "no worker"


def _queue_cells(row: _Row) -> Mapping[str, str]:
    queue, now = row
    return {
        "QUEUE": queue.name,
        "STATE": _name_state(queue),
        "WAITING": str(queue.total),
        "OLDEST": format_duration(max(0.0, now - queue.oldest)) if queue.oldest else "-",
        "WORKERS": str(queue.workers),
        "MARK": describe_pause(queue.pause, now) if queue.pause else "-",
    }


def _queue_wide(row: _Row) -> Mapping[str, str]:
    return {f"P{step}": str(count) for step, count in row.queue.waiting.items()}


QUEUES: Final = Columns[_Row](lambda row: queue_fields(*row), _queue_cells, _queue_wide, lambda row: row.queue.name)
