"""A named batch of jobs, found again from any process."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from sandfleet.channel.records import BatchCounts, CancelState
from sandfleet.collect.polling import ENDS_AT_ONCE, split
from sandfleet.collect.stream import BatchStream
from sandfleet.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.protocol import Channel


class Forgotten(NamedTuple):
    """How many jobs of a batch were forgotten, and how many were kept since they have not ended."""

    forgotten: int
    kept: int


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
        state = self._channel.read_batch(self.name)
        return BatchCounts(state.total, state.ended)

    @property
    def codes(self) -> dict[str, int]:
        """How many of its jobs ended with each code; of a job that is run again, the newest run counts."""
        return dict(self._channel.read_batch(self.name).codes)

    @property
    def is_sealed(self) -> bool:
        """Whether all of its jobs have been submitted: said by `submit_many` at its end, or by `seal`, until the next submit."""
        return self._channel.read_batch(self.name).is_sealed

    def seal(self) -> None:
        """Say that all jobs of the batch have been submitted; for those who submit them one by one."""
        self._channel.seal(self.name)

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

        It costs the same however many jobs still wait. It ends when all that were submitted by then have ended, whether or
        not the batch is sealed. A job that is run again meanwhile is awaited again, and its new outcome comes, too.
        """
        return BatchStream(self._channel, self.name, timeout)

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes there are now, in the order of their ends."""
        portions = self._channel.outcome_portions(self._ended_portions())
        return [outcome for _, found in portions for outcome in found if outcome is not None]

    def _ended_portions(self) -> Iterator[Sequence[str]]:
        place, is_more = "0-0", True
        while is_more:
            state = self._channel.read_batch(self.name, place, ENDS_AT_ONCE)
            place, is_more = state.place, len(state.ends) == ENDS_AT_ONCE
            yield from split([job_id for job_id, _ in state.ends])

    def forget(self, on_progress: Callable[[int], object] | None = None) -> Forgotten:
        """Delete the jobs that have ended, with outcomes, dead letters and their places in the batch; return how many.

        Jobs that have not ended are kept, and told. It is done in steps, so that Redis serves others meanwhile; `on_progress` is
        called with how many are gone. There is no way back.
        """
        forgotten = kept = 0
        for went, stayed in self._channel.forget_batch(self.name):
            forgotten, kept = forgotten + went, kept + stayed
            if on_progress is not None:
                on_progress(forgotten)
        return Forgotten(forgotten, kept)

    def cancel(self) -> Counter[CancelState]:
        """Cancel every job that has been submitted so far; return how many were ended, asked to end, and had ended before."""
        counts: Counter[CancelState] = Counter()
        for portion in split(self.job_ids):
            counts.update(self._channel.cancel(portion))
        return counts

    async def cancel_async(self) -> Counter[CancelState]:
        """Do what `cancel` does and leave the event loop free."""
        return await asyncio.to_thread(self.cancel)
