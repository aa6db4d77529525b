"""``sandfleet dead``: show dead letters, queue them again, delete them."""

from __future__ import annotations

import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from sandfleet_config.scripts import MAX_DEAD_BYTES, MAX_DEAD_LETTERS

from sandfleet.channel.records import RunState
from sandfleet.cli.acting import note_act
from sandfleet.cli.exits import SOME_NOT_OK
from sandfleet.cli.show import attempt_lines, note, print_lines, safe_line
from sandfleet.errors import FleetError, FleetUnavailable
from sandfleet.fleet import Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.channel.dead_letter import DeadLetter

app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at dead letters, queue them again, drop them."
)
_REQUEUED = frozenset((RunState.QUEUED, RunState.LATER))
_WHY_NOT = {
    RunState.NO_MESSAGE: "what it ran is kept no more",
    RunState.IN_QUEUE: "it was cancelled or expired, and its message still stands far back in the queue",
    RunState.UNREADABLE: "it holds no job that could run: purge it",
    RunState.UNUSABLE: "a key of its queue or batch in Redis has a wrong type",
    RunState.UNKNOWN: "it is gone",
}
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(name="list")
def list_dead_letters(
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many at most, the newest first.")] = 1000,
    is_json: AsJson = False,
) -> None:
    """List the dead letters, one a line: id, when, code, attempts, queue, what it ran or was."""
    with Fleet() as fleet:
        found, dropped = fleet.dead.list(limit), fleet.dead.count_dropped()
    if dropped:
        note(
            f"{dropped} older dead letters were dropped: Redis keeps the newest {MAX_DEAD_LETTERS:,}, "
            f"of {MAX_DEAD_BYTES >> 20} MiB at most"
        )
    if is_json:
        print(json.dumps([dead.model_dump(mode="json") for dead in found], indent=2))
        return
    if not found:
        note("there are no dead letters")
    for dead in found:
        code = dead.code.value if dead.code else "-"
        content = dead.line or dead.garbage
        words = (dead.job_id, _format_time(dead.at), code, str(len(dead.attempts)), dead.queue, content)
        print("\t".join(safe_line(word) for word in words))


@app.command()
def show(job_id: Annotated[str, typer.Argument(metavar="ID")], *, is_json: AsJson = False) -> None:
    """Show a dead letter with its history."""
    with Fleet() as fleet:
        found = fleet.dead.show(job_id)
    if is_json:
        print(found.model_dump_json(indent=2))
    else:
        print_lines(_lines(found))


@app.command()
def requeue(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
    *,
    batch: Annotated[str | None, typer.Option(help="All dead letters of this batch.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="All dead letters.")] = False,
    resolves_images: Annotated[
        bool,
        typer.Option(
            "--resolve-images", help="Run what the images' names mean now. Default: the digests of the earlier runs."
        ),
    ] = False,
) -> None:
    """Run jobs again under their old ids, with fresh attempts.

    Their earlier outcomes are kept (show --run).
    """
    if (bool(job_ids), batch is not None, is_all).count(True) != 1:
        raise typer.BadParameter("give job ids, or --batch NAME, or --all")
    with Fleet() as fleet:
        if job_ids:
            raise typer.Exit(_requeue(fleet, job_ids, resolves_images=resolves_images))
        raise typer.Exit(_requeue_all(fleet, batch, resolves_images=resolves_images))


def _requeue(fleet: Fleet, job_ids: list[str], *, resolves_images: bool) -> int:
    exit_code, queued = 0, list[str]()
    try:
        for job_id in job_ids:
            try:
                fleet.dead.requeue(job_id, resolves_images=resolves_images)
                print(f"{job_id}\tqueued", flush=True)
                queued.append(job_id)
            except FleetUnavailable:
                raise
            except FleetError as error:
                note(str(error))
                exit_code = SOME_NOT_OK
    finally:
        note_act(fleet, "requeue dead", " ".join(job_ids), count=len(queued), result=f"{len(queued)} queued")
    return exit_code


def _requeue_all(fleet: Fleet, batch: str | None, *, resolves_images: bool) -> int:
    states: Counter[RunState] = Counter()
    for job_id, state in fleet.dead.requeue_all(batch, resolves_images=resolves_images):
        states[state] += 1
        if state not in _REQUEUED:
            note(f"{safe_line(job_id)} was not queued: {_WHY_NOT[state]}")
    later = f", {states[RunState.LATER]} were queued before" if states[RunState.LATER] else ""
    text = f"{states[RunState.QUEUED]} queued{later}"
    print(text)
    target = "all dead letters" if batch is None else f"dead letters of batch:{batch}"
    note_act(fleet, "requeue dead", target, count=states[RunState.QUEUED], result=text)
    return 0 if states.keys() <= _REQUEUED else SOME_NOT_OK


@app.command()
def purge(job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Default: all.")] = None) -> None:
    """Drop dead letters; outcomes stay."""
    with Fleet() as fleet:
        count = fleet.dead.purge(job_ids or None)
        print(f"{count} dropped")
        note_act(fleet, "purge dead", " ".join(job_ids or ["all dead letters"]), count=count, result=f"{count} dropped")


def _lines(dead: DeadLetter) -> Iterator[tuple[str, str]]:
    yield "job", dead.job_id
    yield "since", _format_time(dead.at)
    if dead.code:
        yield "last code", dead.code.value
    if dead.reason:
        yield "reason", dead.reason
    if dead.run > 1:
        yield "run", str(dead.run)
    yield "queue", dead.queue
    if dead.batch is not None:
        yield "batch", dead.batch
    if dead.line:
        yield "runs", dead.line
    if dead.garbage:
        yield "holds", dead.garbage
    yield from attempt_lines(dead.attempts)


def _format_time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
