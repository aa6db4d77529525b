"""Check that Redis has memory for more jobs: a producer must be refused before Redis is full."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from sandfleet_config.queues import KEY_PREFIX, result_key
from sandfleet_config.units import format_bytes

from sandfleet.errors import QueueFull

if TYPE_CHECKING:
    import redis
    from sandfleet_config.settings import Settings

MEASURE_SECONDS = 1.0
PERCENT = 100
SAMPLED_KEYS = 32
"""Random keys of Redis sampled at each measurement; those that are outcomes are measured."""
DEFAULT_OUTCOME_BYTES = 2048
"""Size of an outcome in Redis before any was measured: one without output."""
MAX_SAMPLES = 256
_RESULT = result_key("").encode()


class Capacity:
    """Measures Redis's memory, at most once a second."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._measured_at = float("-inf")
        self._used = self._maximum = self._queued = 0
        self._sizes: list[int] = []

    @property
    def outcome_bytes(self) -> int:
        """The mean size in bytes of the outcomes that were measured."""
        return sum(self._sizes) // len(self._sizes) if self._sizes else DEFAULT_OUTCOME_BYTES

    def check(self, client: redis.Redis) -> None:
        """Return if Redis has memory for new jobs and for the outcomes of all queued ones.

        Raises:
            QueueFull: Redis uses more than ``memory_high_percent`` of its maxmemory, or will when
                the queued jobs have ended.
        """
        high = self._settings.memory_high_percent
        if not high:
            return
        now = time.monotonic()
        if now - self._measured_at >= MEASURE_SECONDS:
            self._measure(client)
            self._measured_at = now
        to_come = self._queued * self.outcome_bytes
        if self._maximum and (self._used + to_come) * PERCENT > self._maximum * high:
            raise self._new_error(to_come, high)

    def _new_error(self, to_come: int, high: float) -> QueueFull:
        need = f", and the outcomes of {self._queued} queued jobs need about {format_bytes(to_come)}"
        more = need if to_come else ""
        return QueueFull(
            f"not queued: Redis uses {format_bytes(self._used)} of its maxmemory of {format_bytes(self._maximum)}{more};"
            f" the limit is {high} % (SANDFLEET_MEMORY_HIGH_PERCENT): wait"
            " until workers have taken jobs and outcomes have expired, or raise maxmemory"
        )

    def explain_no_claims(self, client: redis.Redis) -> str:
        """Return that Redis's memory is too full for workers to claim jobs; empty if it is not."""
        self._read_memory(client)
        high = self._settings.claim_memory_percent
        if not high or not self._maximum or self._used * PERCENT <= self._maximum * high:
            return ""
        return (
            f"Redis uses {self._used * PERCENT // self._maximum} % of its maxmemory: workers claim nothing"
            f" above {high} % (SANDFLEET_CLAIM_MEMORY_PERCENT); forget batches, or raise maxmemory"
        )

    def _read_memory(self, client: Any) -> None:
        facts = client.info("memory")
        self._used, self._maximum = int(facts["used_memory"]), int(facts["maxmemory"])

    def _measure(self, client: Any) -> None:
        self._read_memory(client)
        if not self._maximum:
            return
        with client.pipeline(transaction=False) as pipe:
            # Each queued job has an entry here, in whatever queue; jobs of stock producers have none.
            pipe.zcard(f"{KEY_PREFIX}expiring")
            for _ in range(SAMPLED_KEYS):
                pipe.randomkey()
            queued, *keys = pipe.execute(raise_on_error=False)
        self._queued = queued if isinstance(queued, int) else 0
        with client.pipeline(transaction=False) as pipe:
            for key in keys:
                if isinstance(key, bytes) and key.startswith(_RESULT):
                    pipe.memory_usage(key)
            sizes = pipe.execute(raise_on_error=False)
        self._sizes = [*self._sizes, *(size for size in sizes if isinstance(size, int))][-MAX_SAMPLES:]


def new_queue_full(queue: str, queued: int, wanted: int, max_queued: int) -> QueueFull:
    """Return the error of a queue that has no room for `wanted` more jobs."""
    return QueueFull(
        f"not queued: queue {queue} holds {queued} jobs, {wanted} more would pass max_queued ({max_queued}):"
        " wait until workers have taken some, start more workers, or raise SANDFLEET_MAX_QUEUED"
    )
