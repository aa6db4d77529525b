"""``sandfleet batch hold|release|priority|limit``: what changes the queued jobs of a batch."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from sandfleet_config.batch_limits import BatchLimits
from sandfleet_config.units import format_count

from sandfleet.cli import limits, options
from sandfleet.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet.batch import Batch


def add_commands(app: typer.Typer) -> None:
    """Add the commands to ``sandfleet batch``."""
    commands: tuple[Callable[..., None], ...] = (hold, release, priority, limit)
    for command in commands:
        app.command()(command)


def hold(name: options.BatchName) -> None:
    """Let no more jobs of a batch start, until its release; what runs goes on."""
    with Fleet() as fleet:
        fleet.batch(name).hold()
        print(f"{name}\theld")


def release(name: options.BatchName) -> None:
    """End the hold of a batch, or its stop; its jobs go to the end of their queues."""
    with Fleet() as fleet:
        count = fleet.batch(name).release()
        print(f"{name}\treleased, {format_count(count, 'job back in its queue', 'jobs back in their queues')}")


def priority(
    name: options.BatchName,
    value: Annotated[int, typer.Argument(metavar="PRIORITY", min=0, max=9, help="0 (first) to 9.")],
) -> None:
    """Give a batch's queued jobs another priority; they come before others of that priority."""
    with Fleet() as fleet:
        print(f"{name}\t{format_count(fleet.batch(name).set_priority(value), 'job has', 'jobs have')} priority {value}")


def limit(
    name: options.BatchName,
    *,
    max_failures: limits.MaxFailures = None,
    fail_fast: limits.FailFast = False,
    at_most: limits.AtMost = None,
    deadline: limits.Deadline = None,
    on_stop: limits.OnStop = "keep",
) -> None:
    """Replace the limits of a batch, as submit sets them; without an option, remove them.

    A stop is lifted.
    """
    wanted = limits.read_limits(
        name, on_stop, max_failures=max_failures, fail_fast=fail_fast, at_most=at_most, deadline=deadline
    )
    with Fleet() as fleet:
        fleet.batch(name).set_limits(wanted or BatchLimits())
        print(f"{name}\t{'limits set' if wanted else 'no limits'}")


def limit_lines(batch: Batch) -> Iterator[tuple[str, str]]:
    """Yield the limits of a batch that are in force, and their present state, as (name, text)."""
    state = batch.limits
    found = state.limits
    if state.stopped:
        yield "stopped", state.stopped
    if state.is_on_hold:
        yield "held", shlex.join(["sandfleet", "batch", "release", batch.name])
    if found.at_most is not None:
        yield "at most", f"{found.at_most} at once"
    allowed = 1 if found.fail_fast else found.max_failures
    if allowed is not None:
        yield "failures", f"{state.failures} of {allowed}; then it stops"
    if state.deadline is not None:
        yield "deadline", datetime.fromtimestamp(state.deadline, UTC).isoformat(timespec="seconds")
    if state.parked:
        yield "parked", f"{state.parked} wait for the batch"
