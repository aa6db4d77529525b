"""``sandfleet batch``: list batches; show, wait for, retry, cancel or forget one.

`batch_control` changes its queued jobs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer
from sandfleet_config.units import format_count

from sandfleet.channel.records import CancelState
from sandfleet.cli import batch_control, options
from sandfleet.cli.acting import note_act
from sandfleet.cli.batch_view import show_as_before, show_batch
from sandfleet.cli.done_command import run_done_command
from sandfleet.cli.exits import SOME_NOT_OK
from sandfleet.cli.lists import Categories, Codes, batches, read_filter
from sandfleet.cli.results import results
from sandfleet.cli.retry import read_changes, retry_batch
from sandfleet.cli.rows import Form, FormOption
from sandfleet.cli.spec_file import SpecFile
from sandfleet.cli.waiting import wait_for_batch
from sandfleet.cli.watching import WatchCommand
from sandfleet.fleet import Fleet

if TYPE_CHECKING:
    from sandfleet.batch import Batch

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List batches; look at one, wait for it, hold it, retry, cancel or forget it.",
)
batch_control.add_commands(app)


app.command(name="list", cls=WatchCommand)(batches)
app.command()(results)


@app.command()
def show(
    name: options.BatchName,
    *,
    form: FormOption = Form.TABLE,
    is_json: Annotated[bool, typer.Option("--json", help="As of earlier releases: counts and all job ids.")] = False,
) -> None:
    """Show a batch: counts by code, rate, time left, the last failures. -o ids lists its jobs."""
    with Fleet() as fleet:
        batch = fleet.batch(name)
        if is_json:
            show_as_before(batch)
        else:
            show_batch(batch, form)


@app.command()
def retry(
    name: options.BatchName,
    *,
    code: Codes = None,
    category: Categories = None,
    label: options.Labels = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="Change their specs, such as timeout=60; repeatable."),
    ] = None,
    file: Annotated[
        str | None, typer.Option("--from", metavar="FILE", help="The submitted file, for specs no longer kept.")
    ] = None,
    resolve_images: Annotated[
        bool,
        typer.Option("--resolve-images", help="Look the images' names up again; else the batch keeps its digests."),
    ] = False,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Show which jobs would run again, and queue none.")] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run a batch's jobs that did not end OK again: all, or those of a code, category or label."""
    wanted, changed = read_filter(code, category, label), read_changes(changes)
    with Fleet() as fleet:
        batch = fleet.batch(name)
        source = SpecFile(fleet, batch, file) if file is not None else None
        how = {"resolve_images": resolve_images, "is_dry": is_dry, "is_json": is_json}
        raise typer.Exit(retry_batch(fleet, batch, wanted, changed, file=source, **how))


@app.command()
def wait(
    name: options.BatchName,
    out: options.Out = None,
    timeout: options.WaitTimeout = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--exec", metavar="COMMAND", help="Run this in a shell when it is done, with counts in variables."
        ),
    ] = None,
    *,
    is_listed: Annotated[
        bool, typer.Option("--list", help="Print one line for each job: its id and how it ended.")
    ] = False,
    is_quiet: options.Quiet = False,
) -> None:
    """Wait for a batch and sum up, those that have ended included; exits 1 if any was not OK.

    Ctrl-C only stops waiting.
    """
    with Fleet() as fleet:
        batch = fleet.batch(name)
        status = wait_for_batch(batch, out=out, timeout=timeout, is_listed=is_listed, is_quiet=is_quiet)
        if command is not None and status in {0, SOME_NOT_OK}:
            status = run_done_command(command, batch, status)
        raise typer.Exit(status)


@app.command()
def watch(name: options.BatchName) -> None:
    """Follow a batch until all its jobs have ended: counts, rate, time left, the last failures.

    Jobs that were submitted with --live show their output, line by line with their names. Ctrl-C
    stops.
    """
    with Fleet() as fleet:

        def find_name(job_id: str) -> str:
            record = fleet.record(job_id)
            return record.labels.get("name", "") if record is not None else ""

        raise typer.Exit(wait_for_batch(fleet.batch(name), find_name=find_name))


@app.command()
def cancel(name: options.BatchName) -> None:
    """Cancel every job of a batch, queued or running; says what that did."""
    with Fleet() as fleet:
        text, count = cancel_batch(fleet.batch(name))
        print(f"{name}\t{text}")
        note_act(fleet, "cancel", f"batch:{name}", count=count, result=text)


@app.command()
def forget(
    name: options.BatchName,
    *,
    is_sure: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a batch's ended jobs, with outcomes, dead letters and history; the others are kept.

    It cannot be undone. Of a batch that Redis does not have any more, `sandfleet-web history forget`
    deletes the history.
    """
    with Fleet() as fleet:
        batch = fleet.batch(name)
        total, done = batch.counts
        if not is_sure:
            if not sys.stdin.isatty():
                raise typer.BadParameter("nothing was deleted: say --yes where nobody can be asked")
            jobs = f"{done} of {format_count(total, 'job')} of batch {name}"
            typer.confirm(f"Delete {jobs}, with their outcomes?", abort=True, err=True)
        forgotten, kept = batch.forget()
        print(f"{name}\t{forgotten} forgotten" + (f", {kept} kept: they have not ended" if kept else ""))


def cancel_batch(batch: Batch) -> tuple[str, int]:
    """Cancel the batch; return how many jobs are in each state, for people, and how many that changed."""
    counts = batch.cancel()
    text = (
        f"{counts[CancelState.CANCELLED]} cancelled before they started, {counts[CancelState.REQUESTED]} requested,"
        f" {counts[CancelState.ENDED]} already ended"
    )
    return text, counts[CancelState.CANCELLED] + counts[CancelState.REQUESTED]
