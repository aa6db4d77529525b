"""Outcomes on their way back: streams of them as jobs end."""

from __future__ import annotations

import asyncio
import time
from itertools import chain
from typing import TYPE_CHECKING

from sandfleet.waits import BatchWait, FollowingWait, Wait

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel import Channel
    from sandfleet.interfaces import CancelSignal

POLLED_JOBS = 200
"""So many jobs are asked for by one command anyway; for more, the list of their batch's ends says which to ask for."""


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
        if self._batch and len(self._job_ids) > POLLED_JOBS:
            return FollowingWait(self._channel, self._job_ids, self._timeout, self._batch)
        return Wait(self._channel, self._job_ids, self._timeout)

    def __iter__(self) -> Iterator[Outcome]:
        """Yield each outcome once."""
        wait = self._new_wait()
        while wait.pending:
            yield from chain.from_iterable(wait.collect())
            if (pause := wait.next_pause()) is not None and self._pause(pause):
                return
        wait.raise_if_lost()

    def _pause(self, seconds: float) -> bool:
        """Pause; return whether the wait was cancelled meanwhile."""
        if self._cancel is not None:
            return self._cancel.wait(seconds)
        time.sleep(seconds)
        return False

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        """Yield each outcome once; the event loop stays free."""
        wait = self._new_wait()
        while wait.pending:
            portions = wait.collect()
            # Some at a time by another thread: going there and back takes as long as parsing a few.
            while ended := await asyncio.to_thread(next, portions, None):
                for outcome in ended:
                    yield outcome
                ended.clear()  # the event loop still has the list
            if (pause := await asyncio.to_thread(wait.next_pause)) is not None:
                await asyncio.sleep(pause)
        wait.raise_if_lost()


class BatchStream(OutcomeStream):
    """The outcomes of a batch as its jobs end, each once; for ``for`` and ``async for``. It raises what `OutcomeStream` does."""

    def __init__(self, channel: Channel, name: str, timeout: float | None = None) -> None:
        super().__init__(channel, (), timeout, batch=name)
        self._name = name

    def _new_wait(self) -> Wait:
        return BatchWait(self._channel, self._name, self._timeout)
