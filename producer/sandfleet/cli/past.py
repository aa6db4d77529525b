"""``sandfleet failures`` and ``sandfleet usage``: sums over the history."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias, get_args

import typer
from sandfleet_config.units import format_count

from sandfleet.cli.listing import ListOptions
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.past_options import FilterOptions, PastOptions, Since, Until
from sandfleet.cli.rows import Columns, Limit, format_age, print_rows
from sandfleet.cli.show import note
from sandfleet.cli.watching import WatchCommand, print_watched
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
FailuresBy: TypeAlias = Annotated[
    str, typer.Option(help="fingerprint (the kind of failure), code, image, host or batch.")
]
UsageBy: TypeAlias = Annotated[
    str, typer.Option(metavar="batch|label:KEY", help="batch, or label:KEY for each value of a label.")
]
app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class FailuresOptions(ListOptions, PastOptions):
    """The command line of ``sandfleet failures``."""

    by: FailuresBy = "fingerprint"
    since: Since = "24h"
    limit: Limit = 50


@dataclass(frozen=True, kw_only=True)
class UsageOptions(ListOptions, FilterOptions):
    """The command line of ``sandfleet usage``."""

    by: UsageBy = "batch"
    since: Since = "30d"
    until: Until = ""
    limit: Limit = 50


@app.command(cls=WatchCommand)
@takes_fields(FailuresOptions)
def failures(line: FailuresOptions) -> None:
    """Group the failures of the last 24 h, or of --since, the largest group first.

    One kind is one code and one message without numbers, ids and paths. -o ids prints the newest.
    """
    key = _find_key(line.by)
    wanted, history = line.read_words().wanted, find_history()

    def show() -> None:
        found = history.find_failures(wanted, by=key, count=line.limit or MOST)
        if not print_rows(found, FAILURES, line.shown, is_whole=line.is_whole):
            note("no failure matches")
        _note_state(history)

    print_watched(show, line.watch, line.shown)


@app.command(cls=WatchCommand)
@takes_fields(UsageOptions)
def usage(line: UsageOptions) -> None:
    """Sum up jobs, CPU hours, GiB hours and failures by batch or by a label, the most CPU first.

    GiB hours are the memory limit times the seconds of the program. Jobs that ended OK stay in the
    history for 3 days; sums by batch and time alone go back 30.
    """
    if line.by != "batch" and not (line.by.startswith(LABEL) and line.by != LABEL):
        raise typer.BadParameter("--by is batch, or label:KEY")
    wanted, history = line.read_words().wanted, find_history()

    def show() -> None:
        key = line.by.removeprefix(LABEL) if line.by != "batch" else ""
        found = history.find_usage("label" if key else "batch", wanted, label=key, count=line.limit or MOST)
        if not print_rows(found, USAGE, line.shown, is_whole=line.is_whole):
            note("no run matches")
        _note_state(history)

    print_watched(show, line.watch, line.shown)


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
