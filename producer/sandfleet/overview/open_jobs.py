"""The jobs that have not ended, as far as Redis lists them: the one search of lists and of cancels.

Jobs that wait for another attempt, or are parked in their batch, stand in no queue: they are found
by their batch or id only.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from sandfleet.history.open_filter import may_be_open, takes_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.protocol import Channel
    from sandfleet.history.words import Words

READ_AT_ONCE: Final = 100


@dataclass(frozen=True)
class Reach:
    """How many jobs a search looks at: of each queue, of all queues together, and of a batch."""

    queued: int
    all_queued: int
    members: int


LISTED: Final = Reach(200, 5_000, 5_000)
"""The reach of lists. Jobs of a queue are the next that claims take."""
WHOLE: Final = Reach(100_000, 100_000, sys.maxsize)
"""The reach of acts: whole queues and whole batches, as far as one act can count."""
BEYOND: Final = (
    f"looked at: the jobs that workers have, and {WHOLE.all_queued:,} that wait in queues (200 queues at most; name one"
    " to look at it alone). Jobs that wait for another attempt, or are parked in a batch, are found by their batch only"
)


def find_open(
    channel: Channel, words: Words, reach: Reach = LISTED, tell: Callable[[str], object] = bool
) -> Iterator[JobFacts]:
    """Yield jobs that have not ended and match: those that workers have first, then queue by queue.

    `tell` is called with a sentence about each queue or batch that `reach` has cut. The ids of
    `WHOLE` are read before the first job is yielded: who cancels it changes the lists.
    """
    if not may_be_open(words):
        return
    asked, now = words.wanted, time.time()
    is_on_host = bool(asked.host) and not (asked.job_id or asked.batch)
    ids = _list_ids(channel, words, reach, tell)
    for job in _read_jobs(channel, iter(list(ids)) if reach == WHOLE else ids):
        if takes_open(job, words, now, is_on_host=is_on_host):
            yield job


def _read_jobs(channel: Channel, ids: Iterator[str]) -> Iterator[JobFacts]:
    seen: set[str] = set()
    while chunk := list(islice(ids, READ_AT_ONCE)):
        new = [job_id for job_id in dict.fromkeys(chunk) if job_id not in seen]
        seen.update(new)
        for job in channel.overview.facts(new) if new else ():
            if job is not None and job.state != "ended":
                yield job


def _list_ids(channel: Channel, words: Words, reach: Reach, tell: Callable[[str], object]) -> Iterator[str]:
    asked = words.wanted
    if asked.job_id:
        yield asked.job_id
    elif asked.batch:
        yield from _list_members(channel, asked.batch, reach, tell)
    else:
        yield from _list_of_fleet(channel, words, reach, tell)


def _list_members(channel: Channel, batch: str, reach: Reach, tell: Callable[[str], object]) -> Iterator[str]:
    count = 0
    for page in channel.overview.member_pages(batch):
        if count + len(page) > reach.members:
            yield from page[: reach.members - count]
            tell(f"batch {batch}: its first {reach.members:,} jobs are looked at")
            return
        yield from page
        count += len(page)


def _list_of_fleet(channel: Channel, words: Words, reach: Reach, tell: Callable[[str], object]) -> Iterator[str]:
    """Yield ids of jobs that workers have, then of those that wait in queues.

    Invariant: a whole search reads the queues first: a job that a worker claims meanwhile is found
    as one that it has.
    """
    state, asked = channel.fleet_state, words.wanted
    summary = state.read_summary()
    totals = {one.name: one.total for one in summary.queues if one.total}
    names = [*totals] if not asked.queue else [asked.queue]  # which may be none of those that a summary has
    names = [] if asked.host else names
    read = state.whole_queue if reach == WHOLE else partial(state.queued_ids, first=0)
    waiting = _list_queued(names, totals, reach, read, tell)
    waiting = iter(list(waiting)) if reach == WHOLE else waiting
    for name in sorted({worker.host for worker in summary.workers}):
        if asked.host in {"", name}:
            yield from (job.job_id for job in state.running_jobs(name))
    yield from waiting


def _list_queued(
    names: Sequence[str],
    totals: Mapping[str, int],
    reach: Reach,
    read: Callable[..., list[str]],
    tell: Callable[[str], object],
) -> Iterator[str]:
    left = reach.all_queued
    for name in names:
        count = min(reach.queued, left)
        if totals.get(name, 0) > count:
            tell(f"queue {name}: {count:,} of its {totals[name]:,} jobs are looked at")
        ids = read(name, count=count) if count else []
        left -= len(ids)
        yield from ids
