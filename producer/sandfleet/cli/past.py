"""``sandfleet failures`` and ``sandfleet usage``: sums over the history."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Final, get_args

import typer
from sandfleet_config.units import format_count

from sandfleet.cli import options
from sandfleet.cli.lists import Categories, Codes
from sandfleet.cli.past_options import Batch, Exit, Filter, Host, Image, Queue, Since, Text, Until, read_words
from sandfleet.cli.rows import Columns, Form, FormOption, Limit, NoTrunc, Quiet, format_age, print_rows
from sandfleet.cli.show import note
from sandfleet.cli.watching import Watch, WatchCommand, print_watched
from sandfleet.history.fields import failure_fields, usage_fields
from sandfleet.history.finding import find_history
from sandfleet.history.questions import FailureGroup, FailureKey, UsageRow

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet.history.questions import History

MOST: Final = 500
LABEL: Final = "label:"
BARS: Final = " ▁▂▃▄▅▆▇█"
FAILURE_KEYS: Final[Mapping[str, FailureKey]] = {name: name for name in get_args(FailureKey)}
app = typer.Typer(rich_markup_mode=None)


@app.command(cls=WatchCommand)
def failures(
    *,
    by: Annotated[
        str, typer.Option(help="fingerprint (the kind of failure), code, image, host or batch.")
    ] = "fingerprint",
    batch: Batch = "",
    code: Codes = None,
    category: Categories = None,
    label: options.Labels = None,
    host: Host = "",
    queue: Queue = "",
    image: Image = "",
    exit_code: Exit = "",
    since: Since = "24h",
    until: Until = "",
    text: Text = "",
    words: Filter = None,
    form: FormOption = Form.TABLE,
    is_quiet: Quiet = False,
    is_whole: NoTrunc = False,
    limit: Limit = 50,
    watch: Watch = None,
) -> None:
    """Group the failures of the last 24 h, or of --since, the largest group first.

    One kind is one code and one message without numbers, ids and paths. -o ids prints the newest.
    """
    key = _find_key(by)
    named = {"batch": batch, "host": host, "queue": queue, "image": image, "exit": exit_code}
    named |= {"since": since, "until": until}
    wanted = read_words(named, {"code": code, "category": category}, label, words, text).wanted
    shown, history = Form.IDS if is_quiet else form, find_history()

    def show() -> None:
        found = history.find_failures(wanted, by=key, count=limit or MOST)
        if not print_rows(found, FAILURES, shown, is_whole=is_whole):
            note("no failure matches")
        _note_state(history)

    print_watched(show, watch, shown)


@app.command(cls=WatchCommand)
def usage(
    *,
    by: Annotated[
        str, typer.Option(metavar="batch|label:KEY", help="batch, or label:KEY for each value of a label.")
    ] = "batch",
    batch: Batch = "",
    label: options.Labels = None,
    host: Host = "",
    queue: Queue = "",
    image: Image = "",
    since: Since = "30d",
    until: Until = "",
    words: Filter = None,
    form: FormOption = Form.TABLE,
    is_quiet: Quiet = False,
    is_whole: NoTrunc = False,
    limit: Limit = 50,
    watch: Watch = None,
) -> None:
    """Sum up jobs, CPU hours, GiB hours and failures by batch or by a label, the most CPU first.

    GiB hours are the memory limit times the seconds of the program. Jobs that ended OK stay in the
    history for 3 days; sums by batch and time alone go back 30.
    """
    if by != "batch" and not (by.startswith(LABEL) and by != LABEL):
        raise typer.BadParameter("--by is batch, or label:KEY")
    named = {"batch": batch, "host": host, "queue": queue, "image": image, "since": since, "until": until}
    wanted = read_words(named, {}, label, words).wanted
    shown, history = Form.IDS if is_quiet else form, find_history()

    def show() -> None:
        key = by.removeprefix(LABEL) if by != "batch" else ""
        found = history.find_usage("label" if key else "batch", wanted, label=key, count=limit or MOST)
        if not print_rows(found, USAGE, shown, is_whole=is_whole):
            note("no run matches")
        _note_state(history)

    print_watched(show, watch, shown)


def _find_key(by: str) -> FailureKey:
    if by not in FAILURE_KEYS:
        raise typer.BadParameter(f"--by is one of {', '.join(FAILURE_KEYS)}")
    return FAILURE_KEYS[by]


def _note_state(history: History) -> None:
    """Say what the history lacks."""
    state = history.status()
    if state.lost:
        note(f"the history lacks {format_count(state.lost, 'run')}: Redis dropped what had not been read yet")
    if state.fault:
        note(state.fault)
    elif state.lag_seconds >= 1:
        note(f"the history is {state.lag_seconds:.0f} s behind")


def _failure_cells(group: FailureGroup) -> Mapping[str, str]:
    return {
        "COUNT": str(group.count),
        "CODE": group.code,
        "MESSAGE": group.message or "-",
        "IMAGE": group.image or "-",
        "HOSTS": group.top_host if group.hosts == 1 else str(group.hosts),
        "BATCHES": group.top_batch if group.batches == 1 else str(group.batches),
        "LAST": format_age(group.last, time.time()),
    }


def _failure_wide(group: FailureGroup) -> Mapping[str, str]:
    most = max((*group.trend, 1))
    return {
        "FIRST": format_age(group.first, time.time()),
        "TREND": "".join(BARS[-(-count * (len(BARS) - 1) // most)] for count in group.trend),
        "TOP HOST": group.top_host or "-",
        "TOP BATCH": group.top_batch or "-",
        "FINGERPRINT": group.fingerprint or "-",
        "EXAMPLE": group.example,
    }


def _usage_cells(row: UsageRow) -> Mapping[str, str]:
    failed = sorted(row.failures.items(), key=lambda item: -item[1])
    return {
        "KEY": row.key or "-",
        "JOBS": str(row.jobs),
        "OK": str(row.ok),
        "CPU HOURS": f"{row.cpu_hours:.3f}",
        "GIB HOURS": f"{row.gib_hours:.3f}",
        "FAILURES": ", ".join(f"{count} {code}" for code, count in failed) or "-",
    }


FAILURES: Final = Columns[FailureGroup](failure_fields, _failure_cells, _failure_wide, lambda group: group.example)
USAGE: Final = Columns[UsageRow](usage_fields, _usage_cells, lambda _: {}, lambda row: row.key)
