"""``sandfleet dead``: the jobs that used up their attempts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from sandfleet_config.scripts import MAX_DEAD_BYTES, MAX_DEAD_LETTERS

from sandfleet.cli.exits import SOME_NOT_OK
from sandfleet.cli.show import attempt_lines, note, print_lines, safe_line
from sandfleet.errors import FleetError, FleetUnavailable
from sandfleet.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.dead import DeadLetter

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at dead letters, queue them again, drop them."
)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(name="list")
def list_letters(
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest first.")] = 1000,
    is_json: AsJson = False,
) -> None:
    """List the dead letters, one a line: id, when, code, attempts, queue, what it ran or what it was."""
    with Fleet() as fleet:
        letters, dropped = fleet.dead.list(limit), fleet.dead.count_dropped()
    if dropped:
        note(
            f"{dropped} older dead letters were dropped: Redis keeps the newest {MAX_DEAD_LETTERS:,}, "
            f"of {MAX_DEAD_BYTES >> 20} MiB at most"
        )
    if is_json:
        print(json.dumps([letter.model_dump(mode="json") for letter in letters], indent=2))
        return
    if not letters:
        note("there are no dead letters")
    for letter in letters:
        code = letter.code.value if letter.code else "-"
        what = letter.line or letter.garbage
        words = (letter.job_id, _show_time(letter.at), code, str(len(letter.attempts)), letter.queue, what)
        print("\t".join(safe_line(word) for word in words))


@app.command()
def show(job_id: Annotated[str, typer.Argument(metavar="ID")], *, is_json: AsJson = False) -> None:
    """Show a dead letter with its history."""
    with Fleet() as fleet:
        letter = fleet.dead.show(job_id)
    if is_json:
        print(letter.model_dump_json(indent=2))
    else:
        print_lines(_lines(letter))


@app.command()
def requeue(job_ids: Annotated[list[str], typer.Argument(metavar="ID...")]) -> None:
    """Queue jobs again under their old ids, with fresh attempts; their old outcomes go."""
    exit_code = 0
    with Fleet() as fleet:
        for job_id in job_ids:
            try:
                fleet.dead.requeue(job_id)
                print(f"{job_id}\tqueued", flush=True)
            except FleetUnavailable:
                raise
            except FleetError as error:
                note(str(error))
                exit_code = SOME_NOT_OK
    raise typer.Exit(exit_code)


@app.command()
def purge(job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Default: all.")] = None) -> None:
    """Drop dead letters; outcomes stay."""
    with Fleet() as fleet:
        print(f"{fleet.dead.purge(job_ids or None)} dropped")


def _lines(letter: DeadLetter) -> Iterator[tuple[str, str]]:
    yield "job", letter.job_id
    yield "since", _show_time(letter.at)
    if letter.code:
        yield "last code", letter.code.value
    if letter.reason:
        yield "reason", letter.reason
    yield "queue", letter.queue
    if letter.batch is not None:
        yield "batch", letter.batch
    if letter.line:
        yield "runs", letter.line
    if letter.garbage:
        yield "holds", letter.garbage
    yield from attempt_lines(letter.attempts)


def _show_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
