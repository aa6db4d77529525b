"""``sandfleet batch``: show, wait for, cancel or forget a batch."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer
from sandfleet_config.codes import ErrorCode

from sandfleet.channel.records import CancelState
from sandfleet.cli import options
from sandfleet.cli.completion import complete_batch
from sandfleet.cli.show import print_lines, print_summary
from sandfleet.cli.waiting import wait_for_batch
from sandfleet.fleet import Fleet

if TYPE_CHECKING:
    from sandfleet.batch import Batch

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at a batch, wait for it, cancel it, forget it."
)
Name = Annotated[str, typer.Argument(metavar="NAME", autocompletion=complete_batch)]


@app.command()
def show(
    name: Name,
    *,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, job ids included.")] = False,
) -> None:
    """Show how far a batch is, and how its jobs ended so far."""
    with Fleet() as fleet:
        batch = fleet.batch(name)
        (total, done), codes, is_sealed = batch.counts, batch.codes, batch.is_sealed
        if is_json:
            shown = {"batch": name, "total": total, "done": done, "sealed": is_sealed, "codes": codes}
            print(json.dumps(shown | {"job_ids": batch.job_ids}, indent=2))
            return
        jobs = f"{total}" if is_sealed else f"{total} so far"
        print_lines([("batch", name), ("jobs", jobs), ("ended", str(done)), ("waiting", str(total - done))])
        print_summary({code: codes[code.value] for code in ErrorCode if code.value in codes}, is_output=True)


@app.command()
def wait(
    name: Name,
    out: options.Out = None,
    timeout: options.WaitTimeout = None,
) -> None:
    """Wait for a batch and sum up, those that have ended included; exits 1 if any was not OK. Ctrl-C only stops waiting."""
    with Fleet() as fleet:
        raise typer.Exit(wait_for_batch(fleet.batch(name), out=out, timeout=timeout))


@app.command()
def cancel(name: Name) -> None:
    """Cancel every job of a batch, queued or running; says what that did."""
    with Fleet() as fleet:
        print(f"{name}\t{cancel_batch(fleet.batch(name))}")


@app.command()
def forget(
    name: Name,
    *,
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a batch's jobs that have ended, with outcomes and dead letters; jobs that have not are kept. It cannot be undone."""
    with Fleet() as fleet:
        batch = fleet.batch(name)
        total, done = batch.counts
        if not is_sure:
            if not sys.stdin.isatty():
                raise typer.BadParameter("nothing was deleted: say --yes where nobody can be asked")
            typer.confirm(f"Delete {done} of {total} jobs of batch {name}, with their outcomes?", abort=True, err=True)
        forgotten, kept = batch.forget()
        print(f"{name}\t{forgotten} forgotten" + (f", {kept} kept: they have not ended" if kept else ""))


def cancel_batch(batch: Batch) -> str:
    """Cancel the batch and return how many jobs are in each state, for people."""
    counts = batch.cancel()
    return (
        f"{counts[CancelState.CANCELLED]} cancelled before they started, {counts[CancelState.REQUESTED]} requested,"
        f" {counts[CancelState.ENDED]} already ended"
    )
