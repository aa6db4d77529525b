"""`FleetOverview`: what a `Fleet` tells about its batches and any of its jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandfleet.errors import JobUnknown
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.protocol import Channel
    from sandfleet.history.words import Words
    from sandfleet.overview.job_view import JobView
    from sandfleet.overview.summary import BatchSummary

PAGE_BATCHES: Final = 100


class FleetOverview:
    """Part of `Fleet`: its batches, and its jobs as people ask for them."""

    _channel: Channel

    def batches(self) -> Iterator[BatchSummary]:
        """Yield the batches, the last used first: counts and codes, without rate and failures.

        The newest 10,000 that were used within 30 days, and whose jobs have not all expired. Those
        that only producers of an older release have used are not among them.
        """
        from sandfleet.overview.summary import summarize

        first = 0
        while True:
            page = self._channel.overview.list_batches(first, PAGE_BATCHES)
            yield from (summarize(entry) for entry in page if entry.total)
            if len(page) < PAGE_BATCHES:
                return
            first += PAGE_BATCHES

    def open_jobs(self, *, queue: str = "", host: str = "") -> Iterator[JobFacts]:
        """Yield jobs that have not ended: those that workers have, then the next 200 of each queue.

        Jobs that wait for another attempt, or are parked in their batch, are not among them.
        """
        from sandfleet.history.questions import HistoryFilter
        from sandfleet.history.words import Words

        yield from self.find_open(Words(HistoryFilter(queue=queue, host=host)))

    def find_open(self, words: Words, tell: Callable[[str], object] = bool) -> Iterator[JobFacts]:
        """Yield jobs that have not ended and match the words of a filter, as `open_jobs`.

        Of a batch its first 5,000 jobs are looked at. `tell` is called with a sentence about each
        queue or batch of which there is more.
        """
        from sandfleet.overview.open_jobs import find_open

        yield from find_open(self._channel, words, tell=tell)

    def view(self, job_id: str, *, counts: bool = True) -> JobView:
        """Return all that the fleet knows about a job, ended or not.

        Env and stdin are never in it; outputs only in its outcome. `counts` also counts the jobs
        before a queued one, for which its queue is searched.

        Raises:
            JobUnknown: there is neither a job nor an outcome of that id.
        """
        from sandfleet.overview.job_view import read_view

        found = read_view(self._channel, job_id, counts=counts)
        if found is None:
            raise JobUnknown(f"there is no job {ascii(job_id)[1:-1]}, or it ended too long ago", [job_id])
        return found

    def count_dropped_specs(self) -> int:
        """Return how many specs of jobs that did not end OK were dropped early in the last days.

        256 MiB are kept.
        """
        return self._channel.overview.count_dropped_specs()

    view_async = in_thread(view)
    count_dropped_specs_async = in_thread(count_dropped_specs)
