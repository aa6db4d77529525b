"""Whether there is room in Redis for more jobs: a producer that goes on and on must meet a wall before Redis does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandfleet_config.words import format_bytes

from sandfleet.errors import QueueFull

if TYPE_CHECKING:
    import redis
    from sandfleet_config.settings import Settings

MEMORY_LOOK_SECONDS = 1.0
PERCENT = 100


class Room:
    """Looks at Redis's memory, once a second at most."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._looked = float("-inf")
        self._used = self._maximum = 0

    def check(self, client: redis.Redis) -> None:
        """Return if there is room.

        Raises:
            QueueFull: Redis uses more than ``memory_high_percent`` of its maxmemory.
        """
        high = self._settings.memory_high_percent
        if not high:
            return
        now = time.monotonic()
        if now - self._looked >= MEMORY_LOOK_SECONDS:
            facts = client.info("memory")  # pyright: ignore[reportUnknownMemberType]
            self._used, self._maximum, self._looked = int(facts["used_memory"]), int(facts["maxmemory"]), now
        if self._maximum and self._used * PERCENT > self._maximum * high:
            raise QueueFull(
                f"not queued: Redis uses {format_bytes(self._used)} of its maxmemory of {format_bytes(self._maximum)},"
                f" the limit is {high} % (SANDFLEET_MEMORY_HIGH_PERCENT): wait"
                " until workers have taken jobs and outcomes have expired, or raise maxmemory"
            )


def refuse_full(queue: str, queued: int, wanted: int, max_queued: int) -> QueueFull:
    """Return the error of a queue that has no room for `wanted` more jobs."""
    return QueueFull(
        f"not queued: queue {queue} holds {queued} jobs, {wanted} more would pass max_queued ({max_queued}): wait until workers"
        " have taken some, start more workers, or raise SANDFLEET_MAX_QUEUED"
    )
