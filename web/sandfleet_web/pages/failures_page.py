"""Failures in groups: the same code, image and kind of message; and the dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandfleet.errors import FleetError
from sandfleet.history.questions import HistoryFilter
from sandfleet.overview.host_failures import HOUR
from sandfleet.overview.job_filter import JobFilter

from sandfleet_web.pages.handler import Page, PageHandler

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet.channel.dead_letter import DeadLetter
    from sandfleet.history.questions import FailureGroup

    from sandfleet_web.pages.site import Site

SPANS: Final = {"1h": HOUR, "6h": 6 * HOUR, "24h": 24 * HOUR, "7d": 7 * 24 * HOUR}
MAX_GROUPS: Final = 100
SHOWN_DEAD: Final = 20
CHOICES: Final = ("program", "limit", "request", "control", "host")


class FailuresPage(PageHandler):
    """The failures by kind."""

    async def get(self) -> None:
        """Show the groups of the chosen time."""
        await self.answer(self._new_page(self.argument("since", "24h"), self.argument("category")))

    async def _new_page(self, since: str, category: str) -> Page:
        site = self.site
        since = since if since in SPANS else "24h"
        wanted = JobFilter.of(categories=[category] if category else [])
        categories = frozenset(one.value for one in wanted.categories)
        groups, fault = await self._find(SPANS[since], categories)
        values: dict[str, Any] = {
            "groups": groups[:MAX_GROUPS],
            "has_more": len(groups) > MAX_GROUPS,
            "fault": fault,
            "since": since,
            "spans": SPANS,
            "category": category,
            "categories": CHOICES,
            "dead": await site.reads.read("dead", lambda: read_dead(site)),
            "summary": await site.read_summary(),
            "scope": HistoryFilter(categories=categories, since=site.clock() - SPANS[since]),
        }
        return Page("failures.html", "Failures", "Failures", values, refresh=15)

    async def _find(self, seconds: float, categories: frozenset[str]) -> tuple[Sequence[FailureGroup], str]:
        site, history = self.site, self.site.sources.history
        if history is None:
            return (), "there is no history here: start sandfleet-web serve"
        wanted = HistoryFilter(categories=categories, since=site.clock() - seconds)
        key = ("failures", seconds, categories)
        try:
            return (
                await site.reads.read(
                    key, lambda: history.find_failures(wanted, count=MAX_GROUPS + 1), kept_seconds=5.0
                ),
                "",
            )
        except FleetError as error:
            return (), str(error)


def read_dead(site: Site) -> list[DeadLetter]:
    """Read the newest dead letters."""
    return site.sources.channel.dead_letters(SHOWN_DEAD)
