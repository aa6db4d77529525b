"""Watches: a wait's handle on the notices about jobs that end. `notices` serves them."""

from __future__ import annotations

import os
import re
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar

from sandfleet_config.live import live_key
from sandfleet_config.queues import ends_key, result_key

from sandfleet.channel.ended_reader import parse_entries
from sandfleet.channel.live import BEGIN, LiveEntries, parse_live_answer
from sandfleet.channel.records import NewEntries

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.waker import Waker

MAX_KEPT_BYTES: Final = 4 << 20
"""Notices that one watch keeps until they are taken."""
FRESH_SECONDS: Final = 1.0
"""How long a notice counts as the outcome: later the job may have been run again."""
RANDOM_ID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
Found = TypeVar("Found")


class NoticeService(Protocol):
    """Serves watches; implemented by `sandfleet.channel.notices.Notices`."""

    def has(self, watch: Any, /) -> bool:
        """Whether the watch is served."""
        ...

    def ask(self, request: Callable[[Any], None], /) -> None:
        """Call `request` in the service's thread, with the thread as its argument."""
        ...

    def raise_error(self, error: Exception | None, /) -> None:
        """Raise an error that Redis has answered to a watch, as `FleetUnavailable`."""
        ...

    def drop(self, watch: Any, /) -> None:
        """Stop serving the watch."""
        ...


class _Watch:
    """The part that all watches share. A forked child has none of its parent's."""

    def __init__(self, notices: NoticeService, waker: Waker) -> None:
        self._notices, self._pid = notices, os.getpid()
        self.waker = waker
        self._error: Exception | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it still gets notices: not once the fleet is closed, nor in a forked child."""
        return self._pid == os.getpid() and self._notices.has(self)

    def fail(self, error: Exception) -> None:
        """Make the next use of the watch raise `error`, and wake the wait."""
        self._error = error
        self.waker.wake()

    def close(self) -> None:
        """Receive no more notices."""
        if self._pid == os.getpid():
            self._notices.drop(self)


class JobWatch(_Watch):
    """Tells which of some jobs have ended since the last call of `take`, and how.

    A notice is the job's result. It is kept up to `MAX_KEPT_BYTES`; Redis is asked for others, and
    where a notice may be of something else than the job's newest run:

    - before the subscription has begun: another wait may have subscribed before this run did.
    - after `FRESH_SECONDS`.
    - a job that was given its id: a channel is that of all databases of a Redis, and another fleet
      may have a job of that id.
    """

    def __init__(self, notices: NoticeService, job_ids: Sequence[str], waker: Waker) -> None:
        super().__init__(notices, waker)
        self.channels = {result_key(job_id).encode(): job_id for job_id in job_ids}
        self._lock = threading.Lock()
        self._ended: dict[str, bytes] | None = {}
        self._has_begun = False
        self._kept_bytes, self._kept_since = 0, 0.0

    def take(self) -> dict[str, Outcome | None] | None:
        """Return the jobs that have ended, with the outcomes that are known.

        None if any may have: the subscription has just begun, or its connection was lost.

        Raises:
            FleetUnavailable: Redis refuses the subscription.
        """
        self._notices.raise_error(self._error)
        with self._lock:
            ended, self._ended, self._kept_bytes = self._ended, {}, 0
        if ended is None:
            return None
        if time.monotonic() - self._kept_since > FRESH_SECONDS:
            return dict.fromkeys(ended)
        return {job_id: _read_notice(job_id, raw) for job_id, raw in ended.items()}

    def add(self, job_id: str, notice: bytes) -> None:
        """Record that a job has ended, and wake the wait."""
        with self._lock:
            if self._ended is not None:
                if not self._ended:
                    self._kept_since = time.monotonic()
                is_kept = self._has_begun and self._kept_bytes + len(notice) <= MAX_KEPT_BYTES
                self._ended[job_id] = notice if is_kept else b""
                self._kept_bytes += len(notice) if is_kept else 0
        self.waker.wake()

    def add_all(self) -> None:
        """Record that any of the jobs may have ended, and wake the wait."""
        with self._lock:
            self._ended, self._has_begun = None, True
        self.waker.wake()


def _read_notice(job_id: str, raw: bytes) -> Outcome | None:
    """Return the outcome that a notice tells; None of one that is not the usual one."""
    from sandfleet.channel.decoder import decode_outcome

    outcome = decode_outcome(raw) if raw and RANDOM_ID.fullmatch(job_id) else None
    return outcome if outcome is not None and outcome.job_id == job_id else None


class StreamWatch(_Watch, Generic[Found]):
    """Wakes when a stream grows, once for each `arm`.

    `parse` makes of XREAD's answer what `take` returns, None of nil.
    """

    def __init__(self, notices: NoticeService, key: str, parse: Callable[[Any], Found | None], waker: Waker) -> None:
        super().__init__(notices, waker)
        self.key, self.parse = key, parse
        self.cursor = BEGIN
        self._answer: tuple[str, Found] | None = None

    def arm(self, cursor: str) -> None:
        """Wake at the first stream entry after `cursor`; at once if there is one already.

        Raises:
            FleetUnavailable: Redis refuses to read the stream.
        """
        self._notices.raise_error(self._error)
        self.cursor = cursor
        self._notices.ask(lambda thread: thread.stream_reads.start(self))

    def take(self, cursor: str) -> Found | None:
        """Return the entries that woke the wait; None if they are not the first after `cursor`."""
        answer, self._answer = self._answer, None
        return answer[1] if answer is not None and answer[0] == cursor else None

    def answer(self, cursor: str, found: Found | None) -> None:
        """Record what Redis has found after `cursor` (None: nothing in time), and wake the wait."""
        self._answer = None if found is None else (cursor, found)
        self.waker.wake()


class BatchWatch(StreamWatch[NewEntries]):
    """Wakes when the next job of a batch ends."""

    def __init__(self, notices: NoticeService, name: str, waker: Waker) -> None:
        super().__init__(notices, ends_key(name), parse_entries, waker)


class LiveWatch(StreamWatch[LiveEntries]):
    """Wakes when a job's live output grows."""

    def __init__(self, notices: NoticeService, job_id: str, waker: Waker) -> None:
        super().__init__(notices, live_key(job_id), parse_live_answer, waker)
