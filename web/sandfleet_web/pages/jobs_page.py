"""Jobs: a search over ended runs, and over jobs that have not ended as far as Redis lists them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from sandfleet.errors import FleetError
from sandfleet.history.questions import MAX_DEPTH, PastRun
from sandfleet.overview.job_filter import JobFilter, find_jobs
from sandfleet_config.queues import JOB_ID

from sandfleet_web.pages.categories import find_category
from sandfleet_web.pages.handler import Page, PageHandler
from sandfleet_web.pages.open_jobs import OpenJobs, list_open
from sandfleet_web.pages.paging import ROWS
from sandfleet_web.pages.search import Search, parse_search
from sandfleet_web.pages.text import link

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet.channel.job_facts import JobFacts

    from sandfleet_web.pages.site import Site


@dataclass(frozen=True)
class JobRow:
    """A job in a list, ended or not."""

    job_id: str
    state: str
    code: str
    name: str
    batch: str
    queue: str
    host: str
    seconds: float | None
    at: float
    """When it ended or, if it has not, was submitted."""
    message: str = ""
    run: int = 1
    attempts: int = 0
    labels: Mapping[str, str] | None = None

    @property
    def category(self) -> str:
        """Whose doing its end was; empty if it has not ended."""
        return find_category(self.code) if self.code else ""


def row_of_run(run: PastRun) -> JobRow:
    """Return the row of an ended run."""
    name = run.labels.get("name") or run.line or run.job_id
    number = max(run.attempt_count, len(run.attempts))
    seconds = run.seconds if run.started else None
    return JobRow(
        run.job_id,
        "ended",
        run.code,
        name,
        run.batch,
        run.queue,
        run.host,
        seconds,
        run.ended,
        run.message,
        run.run,
        number,
        run.labels,
    )


def row_of_facts(job: JobFacts, now: float) -> JobRow:
    """Return the row of a job as Redis has it."""
    is_ended = job.state == "ended"
    code = job.code.value if is_ended and job.code else ""
    seconds = job.count_seconds(now) if job.state != "queued" else None
    at = job.ended if is_ended else job.submitted
    return JobRow(
        job.job_id,
        job.state,
        code,
        job.name,
        job.batch or "",
        job.queue,
        job.host if job.state != "queued" else "",
        seconds,
        at,
        job.why,
        job.run,
        len(job.attempts),
        job.labels,
    )


class JobsPage(PageHandler):
    """The search."""

    async def get(self) -> None:
        """Show what it finds; the id of a job leads to its page."""
        words = self.argument("q")
        if " " not in words and ":" not in words and JOB_ID.match(words) and await self._is_job(words):
            self.redirect(link("job", id=words))
            return
        await self.answer(self._new_page(words, self.argument("cursor")))

    async def _is_job(self, job_id: str) -> bool:
        site = self.site
        try:
            (facts,) = await site.reads.read(("facts", job_id), lambda: site.sources.channel.overview.facts([job_id]))
        except FleetError:
            return False
        return facts is not None

    async def _new_page(self, words: str, cursor: str) -> Page:
        try:
            search = parse_search(words, self.site.clock())
        except ValueError as error:
            return Page("jobs.html", "Jobs", "Jobs", _no_rows(str(error)), refresh=0)
        site = self.site
        found = OpenJobs()
        if search.may_be_open and not cursor:
            found = await site.reads.read(("open", words), lambda: list_open(site.sources.channel, search))
        rows, next_cursor, total, fault = await self._find_ended(search, cursor)
        values: dict[str, Any] = {
            "words": words,
            "open_rows": [row_of_facts(job, site.clock()) for job in found.jobs],
            "open_note": search.describe_open(),
            "has_more_open": found.has_more,
            "cut": found.cut,
            "rows": rows,
            "next": link("jobs", q=words, cursor=next_cursor) if next_cursor else "",
            "total": total,
            "depth": MAX_DEPTH,
            "fault": fault,
        }
        return Page("jobs.html", "Jobs", "Jobs", values, refresh=0)

    async def _find_ended(self, search: Search, cursor: str) -> tuple[list[JobRow], str, int, str]:
        """Return a page of ended runs, the cursor of the next, how many match, and why not."""
        history = self.site.sources.history
        if not search.may_be_ended:
            return [], "", 0, ""
        if history is None:
            return await self._find_in_redis(search)
        wanted = search.history
        reads = self.site.reads
        try:
            page = await reads.read(
                ("runs", search.text, cursor), lambda: history.find_runs(wanted, count=ROWS, cursor=cursor)
            )
        except (FleetError, ValueError) as error:
            return [], "", 0, str(error)
        rows = [row_of_run(run) for run in page.rows]
        if not cursor and not page.cursor:
            return rows, "", len(rows), ""  # these are all: nothing is to be counted
        try:
            total = await reads.read(("count", search.text), lambda: history.count_runs(wanted), kept_seconds=5.0)
        except FleetError:
            total = MAX_DEPTH + 1  # more than can be counted in time
        return rows, page.cursor, total, ""

    async def _find_in_redis(self, search: Search) -> tuple[list[JobRow], str, int, str]:
        """Return ended jobs of the batch that is asked for, where there is no history."""
        name, site = search.history.batch, self.site
        if not name:
            return [], "", 0, "there is no history here: ended jobs are found by batch: or by id only"
        found = await site.reads.read(("ended", search.text), lambda: find_ended(site, search))
        return found, "", len(found), ""


def find_ended(site: Site, search: Search) -> list[JobRow]:
    """Return ended jobs of a batch from Redis, a page of them."""
    wanted = search.history
    job_filter = JobFilter.of(
        codes=wanted.codes,
        categories=wanted.categories,
        states=("ended",),
        labels=wanted.labels,
        host=wanted.host,
    )
    found = find_jobs(site.sources.channel.overview, wanted.batch, job_filter)
    now = site.clock()
    return [row_of_facts(job, now) for job in islice(found, ROWS)]


def _no_rows(fault: str) -> dict[str, Any]:
    empty: dict[str, Any] = {
        "open_rows": (),
        "open_note": "",
        "has_more_open": False,
        "cut": (),
        "rows": (),
        "next": "",
        "total": 0,
        "depth": MAX_DEPTH,
    }
    return empty | {"fault": fault, "words": ""}
