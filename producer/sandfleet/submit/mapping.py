"""`Fleet.map`: submit items as earlier ones end, and yield each with its outcome."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sandfleet_config.errors import RequestError

from sandfleet.channel.waker import CancelRelay
from sandfleet.collect.batch_waits import BatchJobsWait
from sandfleet.collect.polling import Wait
from sandfleet.collect.steps import drive, drive_async
from sandfleet.errors import FleetError, QueueFull
from sandfleet.submit.chunks import CHUNK_JOBS, CHUNK_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.waker import Waker
    from sandfleet.submit.submission import Submission

Item = TypeVar("Item")


class _MapSteps(Generic[Item]):
    """One map: a wait that gets new jobs while others end."""

    def __init__(
        self,
        submission: Submission,
        wait: Wait,
        spec_of: Callable[[Item], SandboxSpec | Mapping[str, Any]],
        items: Iterator[Item],
        ahead: int,
    ) -> None:
        self._submission, self._wait, self._spec_of, self._items = submission, wait, spec_of, items
        self._ahead = ahead
        self._taken: list[Item] = []
        """Items that are not queued yet: the queue had no room for them."""
        self._items_of: defaultdict[str, list[Item]] = defaultdict(list)
        self._submitted, self._chunk = 0, CHUNK_JOBS
        self._is_exhausted = self._is_full = False

    @property
    def waker(self) -> Waker:
        return self._wait.waker

    @property
    def is_over(self) -> bool:
        return not self._is_left() and self._wait.is_over

    def collect(self) -> Iterator[list[tuple[Item, Outcome]]]:
        if self._is_half_free():
            self._fill()
        self._is_full = False
        for outcomes in self._wait.collect():
            yield [(item, outcome) for outcome in outcomes for item in self._items_of.pop(outcome.job_id, ())]

    def _is_half_free(self) -> bool:
        """Whether at least half of the look-ahead is free, and items are left."""
        return self._is_left() and len(self._wait.pending) <= self._ahead // 2

    def _is_left(self) -> bool:
        return bool(self._taken) or not self._is_exhausted

    def _fill(self) -> None:
        """Queue items until the look-ahead or the queue is full."""
        while self._is_left() and not self._is_full and len(self._wait.pending) < self._ahead:
            self._submit_some()

    def _submit_some(self) -> None:
        """Queue the next items, at most a chunk; after the last one seal the batch."""
        if not self._taken:
            self._take(min(CHUNK_JOBS, self._ahead - len(self._wait.pending)))
        items = self._taken[: self._chunk]
        try:
            jobs = self._submission.submit_part([self._spec_of(item) for item in items], self._submitted)
        except QueueFull:
            # Tried again when one of this map's own jobs has ended; without any, with fewer items.
            self._is_full = not self._wait.is_over
            if not self._is_full and len(items) == 1:
                raise
            self._chunk = max(1, len(items) // 2)
            return
        except (FleetError, RequestError) as error:
            error.job_ids = tuple(dict.fromkeys([*self._wait.pending, *error.job_ids]))
            raise
        for job, item in zip(jobs, items, strict=True):
            self._items_of[job.id].append(item)
        self._wait.add(job.id for job in jobs)
        self._submitted += len(jobs)
        self._taken = self._taken[len(items) :]
        self._chunk = min(CHUNK_JOBS, 2 * self._chunk)
        if not self._is_left():
            self._submission.seal()

    def _take(self, number: int) -> None:
        """Take items; fewer if they come slowly."""
        end = time.monotonic() + CHUNK_SECONDS
        for item in self._items:
            self._taken.append(item)
            if len(self._taken) >= number or time.monotonic() >= end:
                return
        self._is_exhausted = True

    def next_pause(self) -> float | None:
        return 0.0 if self._is_half_free() and not self._taken else self._wait.next_pause()

    def gather_rest(self) -> float:
        return self._wait.gather_rest()

    def raise_if_lost(self) -> None:
        self._wait.raise_if_lost()


class MapStream(Generic[Item]):
    """Items with their outcomes, as the jobs end; for ``for`` and ``async for``, once.

    Raises, while iterated, what `Fleet.submit_many` and `OutcomeStream` raise; ``job_ids`` are the
    jobs that were under way. Jobs go on if the iteration ends early.
    """

    def __init__(
        self,
        channel: Channel,
        new_submission: Callable[[], Submission],
        spec_of: Callable[[Item], SandboxSpec | Mapping[str, Any]],
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        ahead: int,
        batch: str | None,
        timeout: float | None,
    ) -> None:
        if ahead < 1:
            raise ValueError(f"ahead must be 1 or more jobs, not {ahead}")
        self._channel, self._new_submission = channel, new_submission
        self._spec_of, self._items = spec_of, items
        self._ahead, self._batch, self._timeout = ahead, batch, timeout

    def _new_wait(self) -> Wait:
        if self._batch:
            return BatchJobsWait(self._channel, (), self._timeout, self._batch)
        return Wait(self._channel, (), self._timeout)

    def _new_steps(self, wait: Wait, items: Iterator[Item]) -> _MapSteps[Item]:
        return _MapSteps(self._new_submission(), wait, self._spec_of, items, self._ahead)

    def __iter__(self) -> Iterator[tuple[Item, Outcome]]:
        """Yield each item with the outcome of its job."""
        if isinstance(self._items, AsyncIterable):
            raise TypeError("these items are asynchronous: use async for")
        with closing(self._new_wait()) as wait:
            steps = self._new_steps(wait, iter(self._items))
            yield from drive(steps, CancelRelay(wait.waker, None))
            steps.raise_if_lost()

    async def __aiter__(self) -> AsyncIterator[tuple[Item, Outcome]]:
        """Yield each item with the outcome of its job; the event loop stays free.

        Plain items and their specs are read in other threads, asynchronous items in the event loop.
        """
        with closing(self._new_wait()) as wait:
            items = _read_from_thread(self._items) if isinstance(self._items, AsyncIterable) else iter(self._items)
            steps = await asyncio.to_thread(self._new_steps, wait, items)
            async for pair in drive_async(steps):
                yield pair
            steps.raise_if_lost()


def _read_from_thread(items: AsyncIterable[Item]) -> Iterator[Item]:
    """Return the items for another thread than that of the running event loop."""
    loop, source = asyncio.get_running_loop(), aiter(items)

    async def read() -> list[Item]:
        try:
            return [await anext(source)]
        except StopAsyncIteration:
            return []

    def read_all() -> Iterator[Item]:
        while found := asyncio.run_coroutine_threadsafe(read(), loop).result():
            yield found[0]

    return read_all()
