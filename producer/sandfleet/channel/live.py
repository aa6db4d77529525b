"""The live output of running jobs, as a channel has it.

Implemented on Redis and, for tests, in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from sandfleet_config.live import LiveEntry, parse_live_entry

if TYPE_CHECKING:
    from sandfleet.channel.waker import Waker

BEGIN: Final = "0-0"
"""The cursor before the first entry of a stream."""


class LiveEntries(NamedTuple):
    """New entries of a job's stream, and the cursor of the last."""

    entries: Sequence[LiveEntry]
    cursor: str


class LiveWatch(Protocol):
    """Wakes a waker when a job's stream grows."""

    @property
    def is_alive(self) -> bool:
        """Whether it still receives notices."""
        ...

    def arm(self, cursor: str) -> None:
        """Wake once, at the first entry after `cursor`."""
        ...

    def take(self, cursor: str) -> LiveEntries | None:
        """Return the entries that woke the wait; None if they are not the first after `cursor`."""
        ...

    def close(self) -> None:
        """Receive no more notices."""
        ...


class LiveOutputs(Protocol):
    """Reads live output; safe for concurrent use.

    Each method raises `FleetUnavailable` if the transport is down.
    """

    def read(self, cursors: Mapping[str, str]) -> dict[str, LiveEntries]:
        """Return the entries after the cursor of each job; some at a time, none of the others."""
        ...

    def list_changed(self, batch: str, since: float) -> list[tuple[str, float]]:
        """Return the jobs of a batch whose streams have grown, with the time of that.

        `since` is such a time; 0 lists all that are still there. By time, some hundred at most.
        """
        ...

    def watch(self, job_id: str, waker: Waker) -> LiveWatch:
        """Wake `waker` when the job's stream grows; nothing is read before the first `arm`."""
        ...


def parse_live_answer(answer: Any) -> LiveEntries | None:
    """Parse XREAD's answer for one stream, or nil."""
    if not answer:
        return None
    ((_, entries),) = answer
    return parse_entries(entries)


def parse_entries(entries: Any) -> LiveEntries:
    """Parse [[entry id, [field, value, ...]], ...]."""
    found = [parse_live_entry(dict(zip(fields[::2], fields[1::2], strict=True))) for _, fields in entries]
    return LiveEntries([entry for entry in found if entry is not None], entries[-1][0].decode())
