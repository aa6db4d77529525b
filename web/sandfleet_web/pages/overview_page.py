"""The Overview: what needs a person, and the state of the fleet on one screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sandfleet.errors import FleetError
from sandfleet.overview.host_failures import HOUR, HostFailures, read_host_failures
from sandfleet.overview.summary import summarize

from sandfleet_web.pages.charts import CATEGORIES, Columns
from sandfleet_web.pages.handler import Page, PageHandler
from sandfleet_web.pages.hosts import Host, count_states, group_hosts
from sandfleet_web.pages.needs import find_needs
from sandfleet_web.pages.queues import new_rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet.history.questions import History, HistoryStatus, RollupPoint
    from sandfleet.overview.summary import BatchSummary

    from sandfleet_web.pages.site import Site

STEP_SECONDS: Final = 60
SHOWN_QUEUES: Final = 10
SHOWN_BATCHES: Final = 8
SHOWN_ACTS: Final = 5
SHOWN_HOSTS: Final = 200
KEPT_SECONDS: Final = 5.0
"""How long what the history says of the last hour is kept."""


@dataclass(frozen=True)
class Hour:
    """The last hour as the history has it; `fault` says why it has nothing."""

    outcomes: Columns
    failures: dict[str, HostFailures] | None
    queued_seconds: float = 0.0
    fault: str = ""

    @property
    def per_second(self) -> float:
        """How many runs ended a second."""
        return self.outcomes.total / HOUR

    @property
    def mean_wait(self) -> float | None:
        """How long the ended runs waited on average, None of none."""
        return self.queued_seconds / self.outcomes.total if self.outcomes.total else None


def read_hour(history: History, now: float) -> Hour:
    """Ask the history about the last hour."""
    first = now // STEP_SECONDS * STEP_SECONDS - HOUR + STEP_SECONDS
    points = history.roll_up("category", since=first, until=now, step_seconds=STEP_SECONDS)
    return new_hour(points, read_host_failures(history, first, now), first)


def new_hour(points: Sequence[RollupPoint], failures: dict[str, HostFailures], first: float) -> Hour:
    """Put the history's answers together."""
    columns: list[dict[str, int]] = [{} for _ in range(int(HOUR) // STEP_SECONDS)]
    for point in points:
        place = int((point.at - first) // STEP_SECONDS)
        if 0 <= place < len(columns) and point.key in CATEGORIES:
            columns[place][point.key] = columns[place].get(point.key, 0) + point.count
    waited = sum(point.queued_seconds for point in points)
    return Hour(Columns(first, STEP_SECONDS, columns), failures, waited)


async def ask_hour(site: Site) -> Hour:
    """Return the last hour; without a history, an empty one that says why."""
    history = site.sources.history
    nothing = Columns(site.clock() - HOUR, STEP_SECONDS)
    if history is None:
        return Hour(nothing, None, fault="there is no history here: start sandfleet-web serve")
    try:
        return await site.reads.read("hour", lambda: read_hour(history, site.clock()), kept_seconds=KEPT_SECONDS)
    except FleetError as error:
        return Hour(nothing, None, fault=str(error))


async def ask_history_status(site: Site) -> HistoryStatus | None:
    """Return the history's status, None if it gives none."""
    try:
        return await site.read_history_status()
    except FleetError:
        return None


def read_batches(site: Site, first: int, number: int) -> tuple[list[BatchSummary], bool]:
    """Read batches, the last used first, and whether there may be more.

    Those that have expired meanwhile are left out, so there may be more after fewer than `number`.
    """
    entries = site.sources.channel.overview.list_batches(first, number + 1)
    return [summarize(entry) for entry in entries[:number] if entry.total], len(entries) > number


class OverviewPage(PageHandler):
    """The first page."""

    async def get(self) -> None:
        """Show it."""
        await self.answer(self._new_page())

    async def _new_page(self) -> Page:
        site = self.site
        summary = await site.read_summary()
        hour = await ask_hour(site)
        hosts = group_hosts(summary, hour.failures)
        needs = find_needs(
            summary,
            hosts,
            await ask_history_status(site),
            loop_lag=site.loop_lag.seconds,
            age_target=site.age_target,
        )
        queues = new_rows(summary, site.age_target)
        values: dict[str, Any] = {
            "summary": summary,
            "needs": needs,
            "hour": hour,
            "hosts": hosts[:SHOWN_HOSTS],
            "more_hosts": len(hosts[SHOWN_HOSTS:]),
            "states": count_states(hosts),
            "odd": sum(host.is_odd for host in hosts),
            "slots": count_slots(hosts),
            "queues": queues[:SHOWN_QUEUES],
            "more_queues": len(queues[SHOWN_QUEUES:]),
            "waiting": sum(queue.total for queue in summary.queues),
            "oldest": max((row.age for row in queues), default=0.0),
            "batches": (await site.reads.read(("batches", 0), lambda: read_batches(site, 0, SHOWN_BATCHES)))[0],
            "audit": await site.reads.read(("audit", ""), lambda: site.sources.state.read_audit(SHOWN_ACTS)),
        }
        return Page("overview.html", "Overview", "Overview", values, as_of=summary.at)


def count_slots(hosts: Sequence[Host]) -> tuple[int, int]:
    """Return (busy, all) slots of the hosts whose workers live."""
    alive = [host for host in hosts if host.state not in {"late", "absent"}]
    return sum(host.busy for host in alive), sum(host.slots for host in alive)
