"""Wait for the end of a batch by its counts alone: no outcome is read, and memory does not grow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from sandfleet_config.units import format_count

from sandfleet.channel.waker import Waker
from sandfleet.collect.polling import CHUNK_JOBS
from sandfleet.errors import ResultTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.channel.protocol import BatchWatch, Channel
    from sandfleet.channel.records import BatchState

GATHER_SECONDS: Final = 0.1
"""Least time between two readings of the counts."""
STALL_SECONDS: Final = 10.0
"""After so long without an end all jobs are looked at: some may have expired or been lost."""
CHECK_SHARE: Final = 10
"""Looking at all jobs takes at most this part of the time."""


class BatchEnd:
    """Waits until every job submitted by then has ended, or is lost; its steps yield the counts.

    Raises, while driven:
        ResultTimeout: the batch has not ended within `timeout` seconds; its jobs go on.
        FleetUnavailable: Redis is out of reach.
    """

    def __init__(self, channel: Channel, name: str, timeout: float | None) -> None:
        self.waker = Waker()
        self.is_over = False
        self._channel, self._name = channel, name
        now = time.monotonic()
        self._deadline = float("inf") if timeout is None else now + timeout
        self._next_check = now + STALL_SECONDS
        self._ended: int = -1
        self._total: int = 0
        self._cursor = ""
        self._watch: BatchWatch | None = None

    def collect(self) -> Iterator[list[BatchState]]:
        """Read the counts."""
        state = self._channel.read_batch(self._name)
        if state.ended != self._ended:
            self._ended, self._next_check = state.ended, time.monotonic() + STALL_SECONDS
        self._total, self._cursor = state.total, state.cursor
        self.is_over = state.ended >= state.total
        yield [state]

    def next_pause(self) -> float | None:
        """Return how many seconds to wait for the next end; None if the wait is over."""
        if self.is_over:
            return None
        now = time.monotonic()
        if now >= self._next_check:
            self.is_over = not self._find_pending()
            return None
        if now >= self._deadline:
            left = f"{self._total - self._ended} of {format_count(self._total, 'job')}"
            raise ResultTimeout(f"{left} of batch {self._name} have not ended in time")
        if self._watch is None or not self._watch.is_alive:
            self.close()
            self._watch = self._channel.watch_batch(self._name, self.waker)
        self._watch.arm(self._cursor)
        return min(self._next_check, self._deadline) - now

    def gather_rest(self) -> float:
        """Return the seconds for which more ends are gathered."""
        return max(0.0, min(GATHER_SECONDS, self._deadline - time.monotonic()))

    def close(self) -> None:
        """Receive no more notices."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _find_pending(self) -> bool:
        """End the jobs whose ``queue_ttl`` is over; return whether any job has not ended."""
        started, position, is_any = time.monotonic(), 0, False
        while ids := self._channel.batch_page(self._name, position, CHUNK_JOBS):
            position += len(ids)
            self._channel.expire_overdue(ids)
            records = self._channel.records(ids)
            is_any = is_any or any(record is not None and record.state != "ended" for record in records)
        took = time.monotonic() - started
        self._next_check = time.monotonic() + max(STALL_SECONDS, took * CHECK_SHARE)
        return is_any
