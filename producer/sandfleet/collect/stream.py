"""Outcomes on their way back: streams of them as jobs end."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from sandfleet.channel.waker import CancelRelay
from sandfleet.collect.polling import BatchWait, FollowingWait, Wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.waker import CancelSignal

SUBSCRIBED_JOBS = 200
"""So many jobs are listened to one by one; of more of one batch, the stream of its ends says which have ended."""


class OutcomeStream:
    """The outcomes of some jobs as they end, each once; for ``for`` and for ``async for``.

    `batch` is the name of the batch that all of the jobs are known to belong to, None where there is no such batch. ``for`` ends
    where `cancel` is set.

    Raises, while iterated:
        ResultTimeout: `timeout` seconds after the start of the iteration jobs have not ended; they are in ``job_ids``.
        JobUnknown: after all the others, where Redis has forgotten a job.
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
            return FollowingWait(self._channel, self._job_ids, self._timeout, self._batch)
        return Wait(self._channel, self._job_ids, self._timeout)

    def __iter__(self) -> Iterator[Outcome]:
        """Yield each outcome once."""
        with closing(self._new_wait()) as wait, closing(CancelRelay(wait.waker, self._cancel)) as relay:
            while wait.pending:
                yield from chain.from_iterable(wait.collect())
                if pause := wait.next_pause():
                    if relay.wait(pause):
                        return
                    if (rest := wait.began + wait.gather_seconds - time.monotonic()) > 0:
                        time.sleep(rest)
            wait.raise_if_lost()

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        """Yield each outcome once; the event loop stays free."""
        with closing(self._new_wait()) as wait:
            while wait.pending:
                portions = wait.collect()
                # Some at a time by another thread: going there and back takes as long as parsing a few.
                while ended := await asyncio.to_thread(next, portions, None):
                    for outcome in ended:
                        yield outcome
                    ended.clear()  # the event loop still has the list
                if pause := await asyncio.to_thread(wait.next_pause):
                    await wait.waker.wait_async(pause)
                    await asyncio.sleep(max(0.0, wait.began + wait.gather_seconds - time.monotonic()))
            wait.raise_if_lost()


class BatchStream(OutcomeStream):
    """The outcomes of a batch as its jobs end, each once; for ``for`` and ``async for``. It raises what `OutcomeStream` does."""

    def __init__(self, channel: Channel, name: str, timeout: float | None = None) -> None:
        super().__init__(channel, (), timeout, batch=name)
        self._name = name

    def _new_wait(self) -> Wait:
        return BatchWait(self._channel, self._name, self._timeout)
