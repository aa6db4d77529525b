"""``sandfleet batch``: a named batch, from any process."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from sandfleet.channel import CancelState
from sandfleet.cli.show import print_lines, print_summary
from sandfleet.cli.waiting import wait_for_batch
from sandfleet.fleet import Fleet

if TYPE_CHECKING:
    from sandfleet.batch import Batch

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look at a batch, wait for it, cancel it.")
Name = Annotated[str, typer.Argument(metavar="NAME")]


@app.command()
def show(
    name: Name,
    *,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, job ids included.")] = False,
) -> None:
    """Show how far a batch is, and how its jobs ended so far."""
    with Fleet() as fleet:
        batch = fleet.batch(name)
        total, done = batch.counts
        codes = Counter(outcome.code for outcome in batch.outcomes())
        if is_json:
            shown = {"batch": name, "total": total, "done": done, "codes": {code.value: codes[code] for code in codes}}
            print(json.dumps(shown | {"job_ids": batch.job_ids}, indent=2))
            return
        print_lines([("batch", name), ("jobs", str(total)), ("ended", str(done)), ("waiting", str(total - done))])
        print_summary(codes)


@app.command()
def wait(
    name: Name,
    out: Annotated[str | None, typer.Option(help="Append outcomes as JSON lines; - is stdout.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait; the jobs go on.")] = None,
) -> None:
    """Wait for a batch and sum up, those that have ended included; exits 1 if any was not OK. Ctrl-C only stops waiting."""
    with Fleet() as fleet:
        raise typer.Exit(wait_for_batch(fleet.batch(name), out=out, timeout=timeout))


@app.command()
def cancel(name: Name) -> None:
    """Cancel every job of a batch, queued or running; says what that did."""
    with Fleet() as fleet:
        print(f"{name}\t{describe_cancel(fleet.batch(name))}")


def describe_cancel(batch: Batch) -> str:
    """Cancel, and say what that did."""
    counts = batch.cancel()
    return (
        f"{counts[CancelState.CANCELLED]} cancelled before they started, {counts[CancelState.REQUESTED]} requested,"
        f" {counts[CancelState.ENDED]} already ended"
    )
