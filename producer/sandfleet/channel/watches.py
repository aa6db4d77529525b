"""Handles by which a wait hears of jobs that end; `notices` serves them."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, Protocol

from sandfleet_config.queues import ends_key, result_key

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet.channel.waker import Waker


class NoticeService(Protocol):
    """Serves watches: `sandfleet.channel.notices.Notices`."""

    def has(self, watch: Any, /) -> bool:
        """Whether the watch is served."""
        ...

    def ask(self, request: Callable[[Any], None], /) -> None:
        """Have the service's thread do something."""
        ...

    def raise_error(self, error: Exception | None, /) -> None:
        """Raise what Redis has answered to a watch, as `FleetUnavailable`."""
        ...

    def drop(self, watch: Any, /) -> None:
        """Serve the watch no more."""
        ...


class JobWatch:
    """Tells which of some jobs have ended since the last call of `take`."""

    def __init__(self, notices: NoticeService, job_ids: Sequence[str], waker: Waker) -> None:
        self._notices, self._pid = notices, os.getpid()
        self.channels = {result_key(job_id).encode(): job_id for job_id in job_ids}
        self.waker = waker
        self._lock = threading.Lock()
        self._ended: list[str] | None = []
        self.error: Exception | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it still hears anything: not after the fleet was closed, nor in a forked child."""
        return self._pid == os.getpid() and self._notices.has(self)

    def take(self) -> list[str] | None:
        """Return those that have ended; None where any may have: after the subscription began, or was lost.

        Raises:
            FleetUnavailable: Redis refuses the subscription.
        """
        self._notices.raise_error(self.error)
        with self._lock:
            ended, self._ended = self._ended, []
        return ended

    def note(self, job_id: str | None) -> None:
        """Note an end, or with None that any may have ended, and wake who waits."""
        with self._lock:
            if job_id is None:
                self._ended = None
            elif self._ended is not None:
                self._ended.append(job_id)
        self.waker.wake()

    def fail(self, error: Exception) -> None:
        """Have `take` raise."""
        self.error = error
        self.waker.wake()

    def close(self) -> None:
        """Hear no more."""
        if self._pid == os.getpid():
            self._notices.drop(self)


class BatchWatch:
    """Wakes at the next end of a batch, once for each `arm`."""

    def __init__(self, notices: NoticeService, name: str, waker: Waker) -> None:
        self._notices, self._pid = notices, os.getpid()
        self.key = ends_key(name)
        self.place = "0-0"
        self.waker = waker
        self.error: Exception | None = None
        # The reader's own:
        self.connection: Any = None
        self.deadline = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether it still hears anything."""
        return self._pid == os.getpid() and self._notices.has(self)

    def arm(self, place: str) -> None:
        """Wake at the first end behind `place` of the stream; at once if there is one already.

        Raises:
            FleetUnavailable: Redis refuses to tell.
        """
        self._notices.raise_error(self.error)
        self.place = place
        self._notices.ask(lambda reader: reader.read_stream(self))

    def fail(self, error: Exception) -> None:
        """Have `arm` raise."""
        self.error = error
        self.waker.wake()

    def close(self) -> None:
        """Hear no more."""
        if self._pid == os.getpid():
            self._notices.drop(self)
