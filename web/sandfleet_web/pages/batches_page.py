"""Batches: how far each is and how its jobs ended; and one batch with its failures in groups."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandfleet.errors import FleetError
from sandfleet.history.questions import MAX_TIMED, HistoryFilter
from sandfleet.overview.job_filter import JobFilter
from sandfleet.overview.summary import read_summary
from sandfleet_config.codes import ErrorCode
from tornado import web

from sandfleet_web.pages.categories import find_category
from sandfleet_web.pages.handler import Page, PageHandler
from sandfleet_web.pages.overview_page import read_batches
from sandfleet_web.pages.paging import ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet.channel.fleet_state import FleetSummary
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.history.questions import FailureGroup, RunTimes
    from sandfleet.overview.summary import BatchSummary

    from sandfleet_web.pages.site import Site

MAX_PAGES: Final = 200
SHOWN_RUNNING: Final = 10
SEARCHED: Final = 2_000
TIMES_SECONDS: Final = 5.0
"""How long the times of a batch are kept: all its runs are read for them."""
SEARCHED_HOSTS: Final = 100
"""Where, and among how many running jobs of all batches, the running jobs of one are looked for."""


class BatchesPage(PageHandler):
    """All batches."""

    async def get(self) -> None:
        """Show a page of them."""
        await self.answer(self._new_page())

    async def _new_page(self) -> Page:
        wanted = self.argument("page")
        number = min(int(wanted), MAX_PAGES) if wanted.isdecimal() and len(wanted) < 6 and int(wanted) else 1  # noqa: PLR2004
        first = (number - 1) * ROWS
        site = self.site
        batches, has_more = await site.reads.read(("batches", first, "page"), lambda: read_batches(site, first, ROWS))
        values: dict[str, Any] = {
            "batches": batches,
            "number": number,
            "has_more": has_more and number < MAX_PAGES,
        }
        return Page("batches.html", "Batches", "Batches", values)


class BatchPage(PageHandler):
    """One batch."""

    async def get(self) -> None:
        """Show it."""
        await self.answer(self._new_page(self.argument("name")))

    async def _new_page(self, name: str) -> Page:
        site = self.site
        overview = site.sources.channel.overview
        batch = await site.reads.read(("batch", name), lambda: read_summary(overview, name))
        if not batch.total:
            raise web.HTTPError(404, reason="No batch has that name, or all of it ended too long ago")
        groups, fault = await ask_groups(site, name)
        times = await ask_times(site, name)
        running: list[JobFacts] = []
        if batch.left:
            hosts = find_busy_hosts(await site.read_summary())
            running = await site.reads.read(("batch running", name), lambda: read_running(site, name, hosts))
        values: dict[str, Any] = {
            "batch": batch,
            "rows": new_code_rows(batch),
            "times": times,
            "timed": times[""].count if "" in times else 0,
            "most_timed": MAX_TIMED,
            "groups": groups,
            "groups_fault": fault,
            "scope": HistoryFilter(batch=name),
            "running": running,
        }
        return Page("batch.html", f"Batch {name}", "Batches", values, refresh=2 if batch.left else 15)


def new_code_rows(batch: BatchSummary) -> list[tuple[str, str, int]]:
    """Return (code, category, jobs) of a batch: OK first, then the most frequent ones."""
    rows = [(code, find_category(code), number) for code, number in batch.codes.items() if number]
    return sorted(rows, key=lambda row: (row[0] != ErrorCode.OK.value, -row[2], row[0]))


def read_running(site: Site, name: str, hosts: Sequence[str]) -> list[JobFacts]:
    """Return jobs of a batch that run or wait on these hosts, those that run longest first.

    Only the jobs that workers have are looked at: a batch may be large.
    """
    ids = [job.job_id for host in hosts for job in site.sources.state.running_jobs(host)][:SEARCHED]
    wanted = JobFilter(states=frozenset(("running", "waiting")))
    found = site.sources.channel.overview.facts(ids) if ids else []
    jobs = [job for job in found if job is not None and job.batch == name and wanted.takes(job)]
    return sorted(jobs, key=lambda job: (job.state != "running", job.started or job.submitted))[:SHOWN_RUNNING]


def find_busy_hosts(summary: FleetSummary) -> list[str]:
    """Return hosts whose workers have jobs, `SEARCHED_HOSTS` at most."""
    return sorted({worker.host for worker in summary.workers if worker.running or worker.waiting})[:SEARCHED_HOSTS]


async def ask_groups(site: Site, batch: str) -> tuple[Sequence[FailureGroup], str]:
    """Return the failures of a batch in groups, or why there are none."""
    history = site.sources.history
    if history is None:
        return (), "there is no history here"
    try:
        wanted = HistoryFilter(batch=batch, is_newest=True)
        groups = await site.reads.read(
            ("groups", batch), lambda: history.find_failures(wanted, count=10), kept_seconds=2.0
        )
    except FleetError as error:
        return (), str(error)
    return groups, ""


async def ask_times(site: Site, batch: str) -> Mapping[str, RunTimes]:
    """Return how long the runs of a batch ran and waited, by code ("": all); nothing without a history."""
    history = site.sources.history
    if history is None:
        return {}
    wanted = HistoryFilter(batch=batch, is_newest=True)
    try:
        found = await site.reads.read(("times", batch), lambda: history.find_times(wanted), kept_seconds=TIMES_SECONDS)
    except FleetError:
        return {}
    return {row.code: row for row in found}
