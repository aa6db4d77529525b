"""Queues: which is old, which is not served; and one queue with the jobs that come next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandfleet.overview.host_failures import HOUR
from tornado import web

from sandfleet_web.pages.handler import Page, PageHandler
from sandfleet_web.pages.paging import cut_page
from sandfleet_web.pages.queues import new_rows

if TYPE_CHECKING:
    from sandfleet.channel.job_facts import JobFacts

    from sandfleet_web.pages.site import Site

NEXT_JOBS: Final = 20


class QueuesPage(PageHandler):
    """All queues."""

    async def get(self) -> None:
        """Show a page of them."""
        await self.answer(self._new_page())

    async def _new_page(self) -> Page:
        summary = await self.site.read_summary()
        rows = new_rows(summary, self.site.age_target)
        out = await ask_rates(self.site)
        values: dict[str, Any] = {"rows": cut_page(rows, self.argument("page")), "summary": summary, "out": out}
        return Page("queues.html", "Queues", "Queues", values, as_of=summary.at)


class QueuePage(PageHandler):
    """One queue."""

    async def get(self) -> None:
        """Show it."""
        await self.answer(self._new_page(self.argument("name")))

    async def _new_page(self, name: str) -> Page:
        site = self.site
        summary = await site.read_summary()
        row = next((row for row in new_rows(summary, site.age_target) if row.queue.name == name), None)
        if row is None:
            raise web.HTTPError(404, reason="There is no queue of that name, or no worker and no job of it")
        jobs = await site.reads.read(("next", name), lambda: read_next(site, name))
        workers = [worker for worker in summary.workers if name in worker.queues]
        out = await ask_rates(site)
        values: dict[str, Any] = {
            "row": row,
            "queue": row.queue,
            "jobs": jobs,
            "workers": workers,
            "out": out.get(name, 0.0),
            "at": summary.at,
        }
        return Page("queue.html", f"Queue {name}", "Queues", values, as_of=summary.at)


def read_next(site: Site, name: str) -> list[JobFacts]:
    """Read the jobs that a claim takes next."""
    ids = site.sources.state.queued_ids(name, 0, NEXT_JOBS)
    found = site.sources.channel.overview.facts(ids) if ids else []
    return [job for job in found if job is not None and job.state == "queued"]


async def ask_rates(site: Site) -> dict[str, float]:
    """Return how many runs of each queue ended a minute, over the last hour; nothing without a history."""
    from sandfleet.errors import FleetError

    history = site.sources.history
    if history is None:
        return {}
    now = site.clock()
    try:
        points = await site.reads.read(
            "queue rates",
            lambda: history.roll_up("queue", since=now - HOUR, until=now, step_seconds=int(HOUR)),
            kept_seconds=5.0,
        )
    except FleetError:
        return {}
    found: dict[str, float] = {}
    for point in points:
        found[point.key] = found.get(point.key, 0.0) + point.count / (HOUR / 60)
    return found
