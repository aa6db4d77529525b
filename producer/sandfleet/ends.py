"""The list of a batch's ended jobs, read as it grows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.channel import Channel

ENDS_AT_ONCE = 10_000


class Ends:
    """Reads what is new in a batch's list of ends; `count` are read so far.

    Invariant: an id stands in the list once, and is only ever appended, or taken out as a dead letter runs again.
    """

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = channel
        self._name = name
        self._last: list[str] = []
        self.count = 0

    def skip(self) -> None:
        """Pass over all that have ended by now."""
        self.count = self._channel.batch_counts(self._name).done
        self._last = self._channel.done_ids(self._name, self.count - 1, 1) if self.count else []

    def rewind(self) -> None:
        """Begin anew."""
        self.count, self._last = 0, []

    def read_new(self) -> Iterator[list[str]]:
        """Yield what is new, slice by slice; all of the list again where something was taken out of it."""
        is_more = True
        while is_more:
            ids = self._channel.done_ids(self._name, self.count - len(self._last), ENDS_AT_ONCE)
            # The last one that was read is read once more: where another has its place, what followed has moved.
            if ids[: len(self._last)] != self._last:
                self.rewind()
                continue
            new = ids[len(self._last) :]
            is_more = len(ids) == ENDS_AT_ONCE
            if new:
                self.count += len(new)
                self._last = new[-1:]
                yield new
