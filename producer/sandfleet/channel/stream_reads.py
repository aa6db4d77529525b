"""Blocking reads of streams: Redis answers when the next job of a batch ends, or a job writes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

import redis

from sandfleet.channel.polled_connection import (
    BLOCK_SECONDS,
    CONNECTION_LOST,
    NO_CONNECTION,
    SILENCE_SECONDS,
    PolledConnection,
)

if TYPE_CHECKING:
    import selectors

    from sandfleet.channel.watches import StreamWatch


MAX_ENTRIES = 1000
"""So many entries at most are in one answer; the next read returns the others at once."""


class _Read(NamedTuple):
    """One read; the connection is its own until Redis has answered."""

    connection: PolledConnection
    deadline: float
    cursor: str


class StreamReads:
    """One blocking XREAD for each armed `StreamWatch`. All calls come from the thread of notices."""

    def __init__(self, pool: Any, selector: selectors.BaseSelector) -> None:
        self._pool = pool
        self._selector = selector
        self._reads: dict[StreamWatch[Any], _Read] = {}

    def start(self, watch: StreamWatch[Any]) -> None:
        """Ask Redis for the first entry after the watch's cursor, unless a read is under way."""
        if not watch.is_alive or watch in self._reads:
            return
        try:
            connection = PolledConnection(self._pool, self._selector, lambda: self._read_answer(watch))
            self._reads[watch] = _Read(connection, time.monotonic() + BLOCK_SECONDS + SILENCE_SECONDS, watch.cursor)
            block_ms = round(BLOCK_SECONDS * 1000)
            connection.redis.send_command(
                "XREAD", "COUNT", MAX_ENTRIES, "BLOCK", block_ms, "STREAMS", watch.key, watch.cursor
            )
        except NO_CONNECTION:
            self._drop_and_wake(watch)

    def _read_answer(self, watch: StreamWatch[Any]) -> None:
        read = self._reads.get(watch)
        if read is None:
            return
        found: Any = None
        try:
            found = watch.parse(read.connection.redis.read_response())
        except redis.ResponseError as error:
            watch.fail(error)
        except CONNECTION_LOST:
            self._drop_and_wake(watch)
            return
        del self._reads[watch]
        read.connection.release()
        watch.answer(read.cursor, found)

    def drop_overdue(self, now: float) -> None:
        """Give up reads that Redis has not answered in time."""
        for watch in [watch for watch, read in self._reads.items() if now > read.deadline]:
            self._drop_and_wake(watch)

    def _drop_and_wake(self, watch: StreamWatch[Any]) -> None:
        self.stop(watch)
        watch.waker.wake()

    def stop(self, watch: StreamWatch[Any]) -> None:
        """Give up the watch's read, if there is one."""
        read = self._reads.pop(watch, None)
        if read is not None:
            read.connection.drop()

    def close(self) -> None:
        """Give up all reads."""
        for watch in list(self._reads):
            self.stop(watch)
