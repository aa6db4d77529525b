"""Stops the claims of a worker while Redis has too little memory for the outcomes of more jobs."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from sandfleet_config.units import format_bytes

if TYPE_CHECKING:
    import redis

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
NEAR_POLL_SECONDS = 0.1
NEAR_SHARE = 0.8
"""Above this share of the limit it polls more often: many large outputs may come in a second."""
NO_LIMIT_POLL_SECONDS = 10.0
"""Poll interval while Redis has no maxmemory: an operator may set one at any time."""
LOG_SECONDS = 60.0
PERCENT = 100


class RedisMemory:
    """Polls Redis's memory once a second, ten times a second near the limit.

    Logs once a minute that claims have stopped.
    """

    def __init__(self, client: redis.Redis, high_percent: int) -> None:
        self._redis: Any = client
        self._high_percent = high_percent
        self._next_poll = float("-inf")
        self._logged = float("-inf")
        self._is_high = False

    def is_high(self) -> bool:
        """Whether Redis uses more than `high_percent` of maxmemory.

        Running jobs need the rest for their outcomes.

        Raises:
            redis.RedisError: it does not answer.
        """
        now = time.monotonic()
        if self._high_percent and now >= self._next_poll:
            facts = self._redis.info("memory")
            used, maximum = int(facts["used_memory"]), int(facts["maxmemory"])
            share = used * PERCENT / (maximum * self._high_percent) if maximum else 0.0
            near_or_far = NEAR_POLL_SECONDS if share > NEAR_SHARE else POLL_SECONDS
            self._next_poll = now + (near_or_far if maximum else NO_LIMIT_POLL_SECONDS)
            was_high, self._is_high = self._is_high, share > 1
            if self._is_high and now - self._logged >= LOG_SECONDS:
                self._logged = now
                log.warning(
                    "claims no job: Redis uses %s of its maxmemory of %s, the limit is %d %%"
                    " (SANDFLEET_CLAIM_MEMORY_PERCENT); what runs goes on. Forget batches, or raise maxmemory",
                    format_bytes(used),
                    format_bytes(maximum),
                    self._high_percent,
                    extra={"action": "claims_stopped"},
                )
            elif was_high and not self._is_high:
                log.info("claims jobs again: Redis uses %s", format_bytes(used), extra={"action": "claims_resumed"})
        return self._is_high
