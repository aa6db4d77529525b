"""Watches of `FakeChannel`."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet.channel.waker import Waker


class FakeWatch:
    """A `JobWatch` and a `BatchWatch`: wakes when a job ends that `is_watched`."""

    def __init__(self, watches: FakeWatches, is_watched: Callable[[str], bool], waker: Waker) -> None:
        self._watches, self._waker = watches, waker
        self.is_watched = is_watched
        self._ended: dict[str, None] | None = None
        self.is_alive = True

    def take(self, cursor: str = "") -> Any:
        """Return the jobs that have ended since the last call; None, for any, at the first call.

        With a `cursor`, as a `BatchWatch`: None, so the list of ended jobs is read anew.
        """
        if cursor:
            return None
        ended, self._ended = self._ended, {}
        return ended

    def arm(self, cursor: str) -> None:  # noqa: ARG002  as in `BatchWatch`
        """Wake now: a job may have ended since the list was read."""
        self._waker.wake()

    def add(self, job_id: str) -> None:
        """Record that a job has ended, and wake the wait."""
        if self._ended is not None:
            self._ended[job_id] = None
        self._waker.wake()

    def close(self) -> None:
        """Wake no more."""
        self._watches.remove(self)


class FakeWatches:
    """All watches of a channel."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._watches: list[FakeWatch] = []

    def add(self, is_watched: Callable[[str], bool], waker: Waker) -> FakeWatch:
        """Return a new watch on the jobs that `is_watched`."""
        watch = FakeWatch(self, is_watched, waker)
        with self._lock:
            self._watches.append(watch)
        return watch

    def remove(self, watch: FakeWatch) -> None:
        """Serve a watch no more."""
        with self._lock:
            if watch in self._watches:
                self._watches.remove(watch)

    def notify(self, job_id: str) -> None:
        """Tell all watches on a job that it has ended."""
        with self._lock:
            watches = [watch for watch in self._watches if watch.is_watched(job_id)]
        for watch in watches:
            watch.add(job_id)
