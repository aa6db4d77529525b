"""Hosts: each machine with its slots; and one host with what runs there."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any, Final

from tornado import web

from sandfleet_web.pages.handler import Page, PageHandler
from sandfleet_web.pages.hosts import STATE_WORDS, Host, count_states, group_hosts
from sandfleet_web.pages.overview_page import ask_hour, count_slots
from sandfleet_web.pages.paging import cut_page
from sandfleet_web.pages.text import duration, link

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet.channel.fleet_state import HostImage, RunningJob
    from sandfleet.channel.job_facts import JobFacts

    from sandfleet_web.pages.site import Site

MAX_SLOTS: Final = 256
MAX_RUNNING: Final = 256


class HostsPage(PageHandler):
    """All hosts."""

    async def get(self) -> None:
        """Show a page of them."""
        await self.answer(self._new_page())

    async def _new_page(self) -> Page:
        summary = await self.site.read_summary()
        hour = await ask_hour(self.site)
        hosts = group_hosts(summary, hour.failures)
        values: dict[str, Any] = {
            "hosts": cut_page(hosts, self.argument("page")),
            "states": count_states(hosts),
            "slots": count_slots(hosts),
            "words": STATE_WORDS,
        }
        return Page("hosts.html", "Hosts", "Hosts", values, as_of=summary.at)


class HostPage(PageHandler):
    """One host."""

    async def get(self) -> None:
        """Show it."""
        await self.answer(self._new_page(self.argument("name")))

    async def _new_page(self, name: str) -> Page:
        summary = await self.site.read_summary()
        hour = await ask_hour(self.site)
        host = next((one for one in group_hosts(summary, hour.failures) if one.name == name), None)
        if host is None:
            raise web.HTTPError(404, reason="No worker of this host lives, and nobody has marked it")
        jobs, facts = await self.site.reads.read(("running", name), lambda: read_running(self.site, name))
        images = await read_images(self.site)
        values: dict[str, Any] = {
            "host": host,
            "said": STATE_WORDS[host.state],
            "jobs": jobs,
            "most_jobs": MAX_RUNNING,
            "quoted": shlex.quote(host.name),
            "facts": facts,
            "squares": new_squares(host, jobs, summary.at),
            "images": images.get(name, ()),
            "at": summary.at,
        }
        return Page("host.html", f"Host {name}", "Hosts", values, as_of=summary.at)


async def read_images(site: Site) -> Mapping[str, Sequence[HostImage]]:
    """Return the images of each host, as old as 10 s."""
    return await site.reads.read("images", site.sources.state.host_images, kept_seconds=10.0)


def read_running(site: Site, host: str) -> tuple[list[RunningJob], dict[str, JobFacts]]:
    """Read the jobs of a host, and what their records say."""
    jobs = sorted(site.sources.state.running_jobs(host), key=lambda job: (job.slot, job.started))[:MAX_RUNNING]
    found = site.sources.channel.overview.facts([job.job_id for job in jobs]) if jobs else []
    facts = {job.job_id: job for job in found if job is not None}
    # What has ended since its worker's last beat no longer runs.
    return [job for job in jobs if job.job_id not in facts or facts[job.job_id].state != "ended"], facts


def new_squares(host: Host, jobs: Sequence[RunningJob], now: float) -> list[tuple[str, str, str]]:
    """Return a square for each slot: taken by which job and for how long, or free."""
    by_slot = {job.slot: job for job in jobs if job.slot >= 0}
    squares: list[tuple[str, str, str]] = []
    for slot in range(min(host.slots, MAX_SLOTS)):
        job = by_slot.get(slot)
        if job is None:
            squares.append(("free", f"slot {slot}: free", ""))
            continue
        since = f"runs for {duration(now - job.started)}" if job.started else "has not started"
        css = "busy" if job.started else "preparing"
        squares.append((css, f"slot {slot}: {job.job_id} {since}", link("job", id=job.job_id)))
    return squares
