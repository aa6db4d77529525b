"""A named batch of jobs, found again from any process."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from sandfleet.channel import CancelState
from sandfleet.collect import BatchStream
from sandfleet.job import Job
from sandfleet.waits import split

if TYPE_CHECKING:
    from sandfleet_config.outcome import Outcome

    from sandfleet.channel import BatchCounts, Channel


class Batch:
    """One batch, by its `name`; cheap to make, safe for concurrent use."""

    def __init__(self, name: str, channel: Channel) -> None:
        self.name = name
        self._channel = channel

    def __repr__(self) -> str:
        """Name the batch only."""
        return f"Batch({self.name!r})"

    @property
    def counts(self) -> BatchCounts:
        """How many jobs were submitted so far (`total`) and how many of them have ended (`done`)."""
        return self._channel.batch_counts(self.name)

    @property
    def is_done(self) -> bool:
        """Whether every job submitted so far has ended."""
        total, done = self.counts
        return done >= total

    @property
    def job_ids(self) -> list[str]:
        """The ids of its jobs, in the order of their submit."""
        return self._channel.batch_ids(self.name)

    @property
    def jobs(self) -> list[Job]:
        """Its jobs, in the order of their submit."""
        return [Job(job_id, self._channel, self.name) for job_id in self.job_ids]

    def as_completed(self, timeout: float | None = None) -> BatchStream:
        """Return the outcomes as they end, those that have ended first, for ``for`` and ``async for``; each job once.

        It costs the same however many jobs still wait. It ends when all that were submitted by then have ended.
        """
        return BatchStream(self._channel, self.name, timeout)

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes there are now, in the order of their ends."""
        portions = self._channel.outcome_portions(split(self._channel.done_ids(self.name)))
        return [outcome for _, found in portions for outcome in found if outcome is not None]

    def cancel(self) -> Counter[CancelState]:
        """Cancel every job that has been submitted so far; return how many were ended, asked to end, and had ended before."""
        counts: Counter[CancelState] = Counter()
        for portion in split(self.job_ids):
            counts.update(self._channel.cancel(portion))
        return counts

    async def cancel_async(self) -> Counter[CancelState]:
        """Do what `cancel` does and leave the event loop free."""
        return await asyncio.to_thread(self.cancel)
