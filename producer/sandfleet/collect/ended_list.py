"""The list of a batch's ended jobs, read from its stream in Redis as it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.channel.protocol import BatchWatch, Channel
    from sandfleet.channel.records import BatchState
    from sandfleet.channel.waker import Waker

ENTRIES_AT_ONCE = 2000


class EndedList:
    """The entries after `cursor`.

    `has_old_workers` says that a worker of an older release ended one of the jobs.
    """

    def __init__(self, channel: Channel, name: str, waker: Waker) -> None:
        self._channel, self._name, self._waker = channel, name, waker
        self.cursor = "0-0"
        self.has_old_workers = False
        self._watch: BatchWatch | None = None

    def skip(self) -> None:
        """Move the cursor to the newest entry."""
        self.cursor = self._channel.read_batch(self._name).cursor

    def read_new(self) -> Iterator[BatchState]:
        """Yield the new entries, `ENTRIES_AT_ONCE` at most in each state.

        The last state has fewer.
        """
        is_more = True
        while is_more:
            state = self._channel.read_batch(self._name, self.cursor, ENTRIES_AT_ONCE)
            is_more = len(state.entries) == ENTRIES_AT_ONCE
            self.cursor = state.cursor
            self.has_old_workers = self.has_old_workers or state.imported > 0
            yield state

    def listen(self) -> None:
        """Have the next entry wake the waker."""
        if self._watch is None or not self._watch.is_alive:
            self._watch = self._channel.watch_batch(self._name, self._waker)
        self._watch.arm(self.cursor)

    def close(self) -> None:
        """Receive no more notices."""
        if self._watch is not None:
            self._watch.close()
