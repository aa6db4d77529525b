"""A worker's lease by Redis's clock: renewed by one beat each third of it, whatever its jobs do."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from sandfleet_worker.delivery.ledger import LeaseLost
from sandfleet_worker.delivery.outages import REDIS_ERRORS, can_pass
from sandfleet_worker.system.bounded_log import log_in_time
from sandfleet_worker.system.supervised_thread import Backoff, SupervisedThread

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandfleet_worker.delivery.claim_comparison import ClaimComparison
    from sandfleet_worker.delivery.host_report import HostReport
    from sandfleet_worker.delivery.ledger import Ledger

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 3
MAX_RETRY_SECONDS = 0.5


class Lease:
    """Keeps this worker's lease in a thread of its own.

    All callbacks are called in the lease's thread: `on_cancelled` gets the ids of this worker's
    jobs that were cancelled, each with why, `on_lost` is called when another worker has taken over,
    and `on_failure` when the thread fails. In an outage of Redis jobs run on, and a beat is tried
    until one succeeds. Each beat tells what `report` says, and returns what operators want of the
    host; after it, `comparison` compares the claims.
    """

    def __init__(
        self,
        ledger: Ledger,
        lease_seconds: float,
        *,
        report: HostReport,
        on_cancelled: Callable[[Mapping[str, str]], None],
        on_lost: Callable[[], None],
        on_failure: Callable[[str], None],
        comparison: ClaimComparison,
    ) -> None:
        self._ledger, self._report = ledger, report
        self._comparison, self._claims = comparison, comparison.held_claims.claims
        self._on_cancelled, self._on_lost = on_cancelled, on_lost
        longest = min(MAX_RETRY_SECONDS, lease_seconds / (2 * BEATS_PER_LEASE))
        backoff = Backoff("beats", longest_seconds=longest)
        self._thread = SupervisedThread("lease", self._beat, on_failure, can_pass=can_pass, backoff=backoff)
        self._steady_since: float | None = None
        self._last = 0.0
        self.seconds, self.tries = lease_seconds, 0
        """Length of the lease, and how many beats were begun, whether they succeeded or not."""
        self.is_lost = False
        self.is_stopping = False
        """Whether the worker was told to stop, as its status says."""

    def start(self) -> None:
        """Begin the lease.

        Raises:
            redis.RedisError: Redis is not there.
        """
        self._ledger.register(self.seconds)
        self._steady_since = self._last = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """Beat no more, and give the lease up if Redis is there."""
        self._thread.stop()
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
        """Seconds for which each beat has succeeded in time; 0 in an outage."""
        since, now = self._steady_since, time.monotonic()
        return 0.0 if since is None or now - self._last > self.seconds else now - since

    @property
    def margin_seconds(self) -> float:
        """Seconds that are left of the lease, by this process's clock; 0 once it is over."""
        return 0.0 if self.is_lost else max(0.0, self._last + self.seconds - time.monotonic())

    @property
    def may_take_over(self) -> bool:
        """Whether a worker without a lease is surely dead.

        It had time to renew since we, and Redis, have been up.
        """
        if self.steady_seconds <= self.seconds:
            return False
        # Redis counts whole seconds.
        return self._ledger.read_uptime() > self.seconds + 1

    def _beat(self) -> float:
        """Beat once; return the pause until the next beat."""
        began = time.monotonic()
        self.tries += 1
        claims = self._claims()
        try:
            told = self._report.encode_status(is_stopping=self.is_stopping), self._report.encode_jobs()
            beat = self._ledger.beat(self.seconds, claims, *told)
        except LeaseLost:
            self.is_lost = True
            self._thread.tell_to_stop()
            log_in_time(log, logging.CRITICAL, "the lease is lost: ending what runs here", action="lease_lost")
            self._on_lost()
            return 0.0
        except REDIS_ERRORS:
            self._steady_since = None
            raise
        self._note_success()
        # The comparison is last: a forged key may make it fail at each beat.
        if beat.cancelled:
            self._on_cancelled(beat.cancelled)
        self._report.mark.note(beat.mark, beat.at, {claim.job_id for claim in claims})
        missing = frozenset(beat.missing)
        self._comparison.compare([claim for claim in claims if claim.claim_id in missing])
        return self._report.mark.limit_pause(max(0.0, self.seconds / BEATS_PER_LEASE - (time.monotonic() - began)))

    def _note_success(self) -> None:
        now = time.monotonic()
        if self._steady_since is None or now - self._last > self.seconds:
            self._steady_since = now
        self._last = now
