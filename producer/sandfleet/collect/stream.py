"""Streams of outcomes, in the order in which jobs end."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from sandfleet.channel.waker import CancelRelay
from sandfleet.collect.batch_waits import BatchJobsWait, BatchWait
from sandfleet.collect.polling import Wait
from sandfleet.collect.steps import drive, drive_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.waker import CancelSignal

SUBSCRIBED_JOBS = 200
"""Up to so many jobs get a subscription each.

For more jobs of one batch, one read of its stream serves all.
"""


class OutcomeStream:
    """The outcomes of some jobs as they end, each once; for ``for`` and for ``async for``.

    `batch` is the name of the batch of all of the jobs, None if there is no such batch. It ends
    when `cancel` is set.

    Raises, while iterated:
        ResultTimeout: `timeout` seconds after the iteration began, jobs have not ended; see
            ``job_ids``.
        JobUnknown: Redis has forgotten a job; raised after all other outcomes.
        FleetUnavailable: Redis is out of reach for longer than a restart takes.
    """

    def __init__(
        self,
        channel: Channel,
        job_ids: Iterable[str],
        timeout: float | None = None,
        *,
        batch: str | None = None,
        cancel: CancelSignal | None = None,
    ) -> None:
        self._channel = channel
        self._job_ids = tuple(dict.fromkeys(job_ids))
        self._timeout = timeout
        self._batch = batch
        self._cancel = cancel

    def _new_wait(self) -> Wait:
        if self._batch and len(self._job_ids) > SUBSCRIBED_JOBS:
            return BatchJobsWait(self._channel, self._job_ids, self._timeout, self._batch)
        return Wait(self._channel, self._job_ids, self._timeout)

    def __iter__(self) -> Iterator[Outcome]:
        """Yield each outcome once."""
        with closing(self._new_wait()) as wait, closing(CancelRelay(wait.waker, self._cancel)) as relay:
            yield from drive(wait, relay)
            if wait.is_over:
                wait.raise_if_lost()

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        """Yield each outcome once; the event loop stays free."""
        with closing(self._new_wait()) as wait, closing(CancelRelay(wait.waker, self._cancel)) as relay:
            async for outcome in drive_async(wait, relay):
                yield outcome
            if wait.is_over:
                wait.raise_if_lost()


class BatchStream(OutcomeStream):
    """The outcomes of a batch as its jobs end, each once; raises what `OutcomeStream` does."""

    def __init__(self, channel: Channel, name: str, timeout: float | None = None) -> None:
        super().__init__(channel, (), timeout, batch=name)
        self._name = name

    def _new_wait(self) -> Wait:
        return BatchWait(self._channel, self._name, self._timeout)
