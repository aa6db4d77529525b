"""The list of a batch's ended jobs, read from its stream in Redis as it grows."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandfleet.channel.records import BatchState

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet.channel.protocol import BatchWatch, Channel
    from sandfleet.channel.waker import Waker

COUNTED_ENTRIES = 200
"""So many entries at most are read together with the counts; more are read alone: cheaper."""
COUNT_SECONDS = 1.0
"""Greatest age of the counts.

Only reading them finds jobs that a worker of an older release ended.
"""


class EndedList:
    """The entries after `cursor`.

    The notice of an ended job brings its entry along. The counts are read anew when the last job
    may have ended, and at most `COUNT_SECONDS` after the entries.

    `has_old_workers` says that a worker of an older release ended one of the jobs.
    """

    def __init__(self, channel: Channel, name: str, waker: Waker) -> None:
        self._channel, self._name, self._waker = channel, name, waker
        self.cursor = "0-0"
        self.has_old_workers = False
        self._watch: BatchWatch | None = None
        self.state = BatchState()
        """The newest counts."""
        self._counted_at = float("-inf")
        self.is_counted = True
        """Whether the counts are as new as the entries."""

    def skip(self) -> None:
        """Move the cursor to the newest entry."""
        self._read("", 0)

    def read_new(self, *, needs_counts: bool = False) -> Iterator[Sequence[tuple[str, int]]]:
        """Yield the new entries, some at a time, as (job id, run).

        Afterwards `state` has the counts of that moment; unless they are needed, they may be
        `COUNT_SECONDS` old.
        """
        noticed = None if needs_counts else self._take_noticed()
        if noticed is not None:
            yield noticed.entries
            return
        is_more = True
        while is_more:
            entries = self._read(self.cursor, COUNTED_ENTRIES).entries
            yield entries
            is_more = len(entries) == COUNTED_ENTRIES
            if is_more:
                for found in self._channel.ended_chunks(self._name, self.cursor):
                    self.cursor = found.cursor
                    yield found.entries

    def _read(self, cursor: str, limit: int) -> BatchState:
        state = self.state = self._channel.read_batch(self._name, cursor, limit)
        self._counted_at, self.is_counted = time.monotonic(), True
        self.cursor = state.cursor
        self.has_old_workers = self.has_old_workers or state.imported > 0
        return state

    def _take_noticed(self) -> BatchState | None:
        """Return the entries that the notice has brought, unless the counts must be read."""
        found = self._watch.take(self.cursor) if self._watch is not None else None
        if found is None or time.monotonic() - self._counted_at > COUNT_SECONDS:
            return None
        ended = self.state.ended + len(found.entries)
        if ended >= self.state.total:
            return None
        self.cursor, self.is_counted = found.cursor, False
        self.state = self.state._replace(ended=ended, entries=found.entries, cursor=found.cursor, imported=0)
        return self.state

    def listen(self) -> None:
        """Have the next entry wake the waker."""
        if self._watch is None or not self._watch.is_alive:
            self._watch = self._channel.watch_batch(self._name, self._waker)
        self._watch.arm(self.cursor)

    def close(self) -> None:
        """Receive no more notices."""
        if self._watch is not None:
            self._watch.close()
