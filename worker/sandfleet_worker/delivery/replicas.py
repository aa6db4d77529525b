"""Waits until a replica of Redis has what a call wrote, so that a fail-over does not undo it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.settings import WorkerSettings

log = logging.getLogger(__name__)

PAUSE_SECONDS = 10.0
"""How long calls do not wait after one waited in vain: without a replica, each would wait."""
LOG_SECONDS = 60.0
MILLI = 1000


class Replicas:
    """How many replicas must have a claim or an end, and how long a call waits for them.

    A worker goes on without them: its jobs would otherwise stand still while a replica is away. A
    fail-over at such a time may repeat jobs, and the record of duplicates says which. Redis sends
    replicas its writes in their order, so one that has this write has all before it.
    """

    def __init__(self, count: int, seconds: float) -> None:
        self._count, self._seconds = count, seconds
        self._paused_until = self._logged = float("-inf")
        self.are_there = True
        """Whether the last wait was not in vain."""

    @classmethod
    def of(cls, settings: WorkerSettings) -> Self:
        """Return what the settings say; a wait of half a lease is the longest.

        The lease's calls have its length as their timeout: the first one would never succeed.
        """
        return cls(settings.replicas, min(settings.redis.replica_seconds, settings.lease_seconds / 2))

    @property
    def are_wanted(self) -> bool:
        """Whether to wait now."""
        return self._count > 0 and time.monotonic() >= self._paused_until

    def wait(self, call: Callable[..., int]) -> None:
        """Wait with Redis's WAIT; `call` sends a command on the connection of the write."""
        found = int(call("WAIT", self._count, round(self._seconds * MILLI)))
        self.are_there = found >= self._count
        if self.are_there:
            return
        now = time.monotonic()
        self._paused_until = now + PAUSE_SECONDS
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            text = "%d of %d replicas of Redis answer within %g s: a fail-over now may repeat jobs"
            log.warning(text, found, self._count, self._seconds, extra={"action": "replicas_missing"})


NO_REPLICAS = Replicas(0, 0)
