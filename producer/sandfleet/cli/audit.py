"""``sandfleet audit``: what operators did."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from sandfleet.channel.fleet_state import AuditEntry
from sandfleet.cli import opening
from sandfleet.cli.listing import ListOptions
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.rows import Columns, Limit, format_age, print_rows
from sandfleet.cli.show import note
from sandfleet.cli.watching import WatchCommand, print_watched
from sandfleet.overview.fields import audit_fields

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandfleet.channel.fleet_state import FleetState

PAGE_ENTRIES: Final = 500
MAX_ENTRIES: Final = 10_000
app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class AuditOptions(ListOptions):
    """The command line of ``sandfleet audit``."""

    before: Annotated[str, typer.Option(help="Entries older than the one with this id.")] = ""
    limit: Limit = 50


@app.command(cls=WatchCommand)
@takes_fields(AuditOptions)
def audit(line: AuditOptions) -> None:
    """List what operators did, newest first: cordons, drains, pauses, cancels and retries by filter."""
    with opening.open_fleet() as fleet:

        def show() -> None:
            entries = _read(fleet.state, line.limit or MAX_ENTRIES, line.before)
            if not print_rows(entries, AUDIT, line.shown, is_whole=line.is_whole):
                note("nobody has done anything yet")

        print_watched(show, line.watch, line.shown)


def _read(state: FleetState, count: int, before: str) -> Iterator[AuditEntry]:
    """Yield entries page by page."""
    while count > 0:
        page = state.read_audit(min(count, PAGE_ENTRIES), before)
        yield from page
        if len(page) < min(count, PAGE_ENTRIES):
            return
        count, before = count - len(page), page[-1].entry_id


def _audit_cells(entry: AuditEntry) -> Mapping[str, str]:
    return {
        "WHEN": format_age(entry.at, time.time()),
        "BY": entry.by,
        "ACTION": entry.action,
        "TARGET": entry.target,
        "JOBS": str(entry.count),
        "REASON": entry.reason or "-",
    }


def _audit_wide(entry: AuditEntry) -> Mapping[str, str]:
    return {"ROLE": entry.role or "-", "VIA": entry.via or "-", "RESULT": entry.result or "-"}


AUDIT: Final = Columns[AuditEntry](audit_fields, _audit_cells, _audit_wide, lambda entry: entry.entry_id)
