"""``-w [SEC]``: print a list again and again."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

import typer
from typer.core import TyperCommand, TyperGroup

from sandfleet.cli.rows import Form
from sandfleet.cli.show import note
from sandfleet.errors import FleetUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEFAULT_SECONDS: Final = "2"
LEAST_SECONDS: Final = 0.2
CLEAR: Final = "\x1b[H\x1b[J"
"""Cursor to the top, and erase what follows (ECMA-48: CUP, ED)."""
NAMES: Final = ("-w", "--watch")

Watch: TypeAlias = Annotated[
    float | None,
    typer.Option(*NAMES, metavar="[SEC]", help="Print again each SEC seconds (2), until Ctrl-C."),
]


def complete_watch(args: Sequence[str]) -> list[str]:
    """Return the arguments with the default seconds after a ``-w`` that has none."""
    found: list[str] = []
    for at, word in enumerate(args):
        found.append(word)
        if word in NAMES and not (at + 1 < len(args) and _is_number(args[at + 1])):
            found.append(DEFAULT_SECONDS)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class WatchCommand(TyperCommand):
    """A command whose ``-w`` may stand without seconds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        return super().parse_args(ctx, complete_watch(args))


class WatchGroup(TyperGroup):
    """A group whose own ``-w`` may stand without seconds."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        return super().parse_args(ctx, complete_watch(args))


def print_watched(show: Callable[[], None], seconds: float | None, form: Form) -> None:
    """Call `show`, which prints; with `seconds` again and again.

    A terminal is redrawn. Elsewhere ``jsonl`` is appended, and every other form printed once. While
    the fleet is out of reach, the last view stays.
    """
    if seconds is None or not (sys.stdout.isatty() or form is Form.JSONL):
        show()
        return
    while True:
        try:
            _redraw(show)
        except FleetUnavailable as error:
            note(str(error))
        time.sleep(max(LEAST_SECONDS, seconds))


def _redraw(show: Callable[[], None]) -> None:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        show()
    clear = CLEAR if sys.stdout.isatty() else ""
    sys.stdout.write(clear + text.getvalue())
    sys.stdout.flush()
