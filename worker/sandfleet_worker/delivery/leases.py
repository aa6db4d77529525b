"""A worker's lease: one beat each third of it, whatever its jobs do, by Redis's clock."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

import redis

from sandfleet_worker.delivery.ledger import LeaseLost

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_worker.delivery.ledger import Ledger

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 3
MAX_RETRY_SECONDS = 0.5
REDIS_ERRORS = (redis.RedisError, OSError)


class Lease:
    """Keeps this worker's lease in a thread of its own.

    `job_ids` names the jobs that run here, `on_cancelled` hears which of them somebody cancelled, and `on_lost` that another
    worker has taken over; both are called in the lease's thread. An outage of Redis changes nothing here: jobs run on, and
    the beats are tried until one succeeds.
    """

    def __init__(
        self,
        ledger: Ledger,
        lease_seconds: float,
        *,
        job_ids: Callable[[], Sequence[str]],
        on_cancelled: Callable[[Sequence[str]], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._ledger, self._seconds = ledger, lease_seconds
        self._job_ids, self._on_cancelled, self._on_lost = job_ids, on_cancelled, on_lost
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._steady_since: float | None = None
        self._last = 0.0
        self.is_lost = False

    def start(self) -> None:
        """Begin the lease; raises ``redis.RedisError`` if Redis is not there."""
        self._ledger.register(self._seconds)
        self._steady_since = self._last = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Beat no more, and give the lease up if Redis is there to hear it."""
        self._stop.set()
        self._thread.join()
        if self.is_lost:
            return
        try:
            left = self._ledger.leave()
        except REDIS_ERRORS as error:
            log.warning("cannot give the lease up: %s", error, extra={"action": "lease_left_behind"})
        else:
            log.info("gave the lease up, %d jobs left to others", left, extra={"action": "lease_ended"})

    @property
    def steady_seconds(self) -> float:
        """How long every beat has succeeded without a gap; 0 in an outage."""
        since, now = self._steady_since, time.monotonic()
        return 0.0 if since is None or now - self._last > self._seconds else now - since

    @property
    def may_take_over(self) -> bool:
        """Whether a silent worker is dead for sure: we, and Redis, have been there long enough for it to renew."""
        if self.steady_seconds <= self._seconds:
            return False
        # Redis counts whole seconds.
        return self._ledger.read_uptime() > self._seconds + 1

    def _run(self) -> None:
        pause = self._seconds / BEATS_PER_LEASE
        while not self._stop.wait(pause):
            began = time.monotonic()
            try:
                cancelled = self._ledger.beat(self._seconds, self._job_ids())
                if cancelled:
                    self._on_cancelled(cancelled)
            except LeaseLost:
                self.is_lost = True
                log.critical("the lease is lost: ending what runs here", extra={"action": "lease_lost"})
                self._on_lost()
                return
            except REDIS_ERRORS as error:
                pause = min(MAX_RETRY_SECONDS, self._seconds / (2 * BEATS_PER_LEASE))
                self._note_failure(error)
            else:
                self._note_success()
                pause = max(0.0, self._seconds / BEATS_PER_LEASE - (time.monotonic() - began))

    def _note_failure(self, error: Exception) -> None:
        if self._steady_since is not None:
            log.warning("no beat reaches Redis: %s", error, extra={"action": "beat_failed"})
        self._steady_since = None

    def _note_success(self) -> None:
        now = time.monotonic()
        if self._steady_since is None:
            log.info("beats reach Redis again", extra={"action": "beat_recovered"})
            self._steady_since = now
        elif now - self._last > self._seconds:
            self._steady_since = now
        self._last = now
