"""Jobs that have not ended, as far as Redis lists them: by host, by queue, or by batch."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Final

from sandfleet.history.open_filter import takes_open

from sandfleet_web.pages.search import MAX_OPEN, SEARCHED_OPEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.protocol import Channel

    from sandfleet_web.pages.search import Search

MAX_HOSTS: Final = 100
MEMBERS: Final = 500
"""Jobs of a batch in one answer of `Overview.member_pages`."""


def find_open(channel: Channel, search: Search, hosts: Sequence[str]) -> list[JobFacts]:
    """Return jobs that match, `MAX_OPEN` at most; `hosts` are those whose jobs are looked at.

    None, if a word asks for how or when a job ended.
    """
    if not search.may_be_open:
        return []
    found = channel.overview.facts(ids) if (ids := _list_ids(channel, search, hosts)) else []
    wanted, now = search.history, time.time()
    is_on_host = bool(wanted.host) and not (wanted.job_id or wanted.batch)
    open_jobs = (
        job
        for job in found
        if job is not None and job.state != "ended" and takes_open(job, search.words, now, is_on_host=is_on_host)
    )
    return list(islice(open_jobs, MAX_OPEN))


def _list_ids(channel: Channel, search: Search, hosts: Sequence[str]) -> list[str]:
    wanted = search.history
    if wanted.job_id:
        return [wanted.job_id]
    if wanted.batch:
        pages = islice(channel.overview.member_pages(wanted.batch), SEARCHED_OPEN // MEMBERS)
        return [job_id for page in pages for job_id in page]
    state = channel.fleet_state
    if wanted.queue and not wanted.host:
        return state.queued_ids(wanted.queue, 0, MAX_OPEN)
    names = [wanted.host] if wanted.host else hosts[:MAX_HOSTS]
    return [job.job_id for name in names for job in state.running_jobs(name)][: SEARCHED_OPEN // MEMBERS * MAX_OPEN]
