"""Act from the command line: who, how it is asked first, and what it did."""

from __future__ import annotations

import getpass
import socket
import sys
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

import typer
from sandfleet_config.units import format_count, parse_seconds

from sandfleet.actions import ActionResult, Actor
from sandfleet.channel.fleet_state import MAX_NOTE
from sandfleet.cli.exits import SOME_NOT_OK
from sandfleet.cli.show import note, safe_line
from sandfleet.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet.actions import JobsPreview, Operator, Selection
    from sandfleet.fleet import Fleet

TYPED_FROM: Final = 101
"""From so many jobs on, the number has to be typed."""

Reason: TypeAlias = Annotated[str, typer.Option("--reason", "-r", help="Why; others see it.")]
DryRun: TypeAlias = Annotated[bool, typer.Option("--dry-run", help="Show what would happen, and do nothing.")]
Yes: TypeAlias = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


def find_actor() -> Actor:
    """Return who runs this command: user and machine."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # no name for this user id
        user = "unknown"
    name = "".join(sign for sign in f"{user}@{socket.gethostname()}" if sign.isprintable())
    return Actor(name[:MAX_NOTE], "operator", "cli")


def new_operator(fleet: Fleet) -> Operator:
    """Return the acts of who runs this command."""
    return fleet.operator(find_actor())


def note_act(fleet: Fleet, action: str, target: str, *, count: int, result: str) -> None:
    """Leave a line in the audit; say so where this user of Redis may write none, as a producer's."""
    try:
        new_operator(fleet).note(action, target, count=count, result=result)
    except FleetError as error:
        note(f"this left no line in the audit: {error}")


def read_duration(text: str) -> float:
    """Return the seconds of ``30m``.

    Raises:
        typer.BadParameter: it is no time.
    """
    try:
        return parse_seconds(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def act_on_jobs(
    verb: str, preview: JobsPreview, act: Callable[[Selection], ActionResult], selection: Selection, *, is_sure: bool
) -> int:
    """Ask, act on all jobs of the selection, and tell; return the exit code."""
    if not preview.count:
        note(f"no job matches: {preview.text}")
        return 0
    _ask(verb, preview, is_sure=is_sure)
    result = act(selection)
    while result.has_more:
        result = result + act(selection)
    print(f"{result.done} done, {result.skipped} skipped, {result.gone} gone")
    for reason, count in result.reasons.most_common():
        print(f"{count}  {safe_line(reason)}")
    return SOME_NOT_OK if result.gone else 0


def show_preview(verb: str, preview: JobsPreview) -> None:
    """Print how many jobs an act would change, and the first few ids."""
    more = "more than " if preview.is_more else ""
    print(f"would {verb} {more}{format_count(preview.count, 'job')}: {safe_line(preview.text)}")
    for job_id in preview.first:
        print(safe_line(job_id))


def _ask(verb: str, preview: JobsPreview, *, is_sure: bool) -> None:
    """Ask a person; a large number has to be typed.

    Raises:
        typer.BadParameter: nobody can be asked.
        typer.Abort: the answer is no.
    """
    if is_sure:
        return
    if not sys.stdin.isatty():
        raise typer.BadParameter("nothing was done: say --yes where nobody can be asked, or --dry-run")
    question = f"{verb} {format_count(preview.count, 'job')}: {safe_line(preview.text)}?"
    if preview.count < TYPED_FROM:
        typer.confirm(question, abort=True, err=True)
    elif typer.prompt(f"{question} Type the number", err=True).strip() != str(preview.count):
        raise typer.Abort
