"""Streams of outcomes, in the order in which jobs end."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from sandfleet.channel.waker import CancelRelay
from sandfleet.collect.batch_waits import BatchJobsWait, BatchWait
from sandfleet.collect.polling import Wait

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

    `batch` is the name of the batch of all of the jobs, None if there is no such batch. ``for``
    ends when `cancel` is set.

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
            while wait.pending:
                yield from chain.from_iterable(wait.collect())
                if pause := wait.next_pause():
                    if relay.wait(pause):
                        return
                    if (rest := _gather_rest(wait)) > 0:
                        time.sleep(rest)
            wait.raise_if_lost()

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        """Yield each outcome once; the event loop stays free."""
        with closing(self._new_wait()) as wait:
            while wait.pending:
                chunks = wait.collect()
                # A chunk at a time in another thread: going there and back takes as long as parsing a few.
                while ended := await asyncio.to_thread(next, chunks, None):
                    for outcome in ended:
                        yield outcome
                    ended.clear()  # the event loop still holds the list
                if pause := await asyncio.to_thread(wait.next_pause):
                    await wait.waker.wait_async(pause)
                    await asyncio.sleep(_gather_rest(wait))
            wait.raise_if_lost()


def _gather_rest(wait: Wait) -> float:
    """Return the seconds until the next round may start."""
    return max(0.0, wait.round_started + wait.gather_seconds - time.monotonic())


class BatchStream(OutcomeStream):
    """The outcomes of a batch as its jobs end, each once; raises what `OutcomeStream` does."""

    def __init__(self, channel: Channel, name: str, timeout: float | None = None) -> None:
        super().__init__(channel, (), timeout, batch=name)
        self._name = name

    def _new_wait(self) -> Wait:
        return BatchWait(self._channel, self._name, self._timeout)
