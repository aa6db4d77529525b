"""When to boot spares: a moment after one was taken, and with back-off after failures."""

from __future__ import annotations

import time

POLL_SECONDS = 0.05
"""How often to look for idle cores while spares are missing. The job that took one comes first."""
BUSY_POLL_SECONDS = 0.1
"""The same once no core was idle: on a busy host each look takes CPU from the jobs."""
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0


class FillSchedule:
    """The next `time.monotonic` instant to boot spares; `next_at` is None while none is missing.

    Not safe for threads.
    """

    def __init__(self) -> None:
        self.next_at: float | None = None
        self._backoff = 0.0
        self._not_before = 0.0

    def is_due(self, now: float) -> bool:
        """Whether to look for missing spares now."""
        return self.next_at is None or now >= self.next_at

    def clear(self) -> None:
        """Plan nothing: no spare is missing."""
        self.next_at = None

    def postpone(self, *, is_busy: bool = False) -> None:
        """Plan the next try, after the back-off or later; `is_busy`: the host had no idle core."""
        self.next_at = max(time.monotonic() + (BUSY_POLL_SECONDS if is_busy else POLL_SECONDS), self._not_before)

    def note_failure(self) -> float:
        """Count a failure in a row; return the seconds until the next try."""
        self._backoff = min(MAX_BACKOFF_SECONDS, self._backoff * 2 or FIRST_BACKOFF_SECONDS)
        self._not_before = time.monotonic() + self._backoff
        return self._backoff

    def note_success(self, *, is_up: bool) -> None:
        """End a row of failures, if a spare is up."""
        self._backoff = 0.0 if is_up else self._backoff
