"""How jobs come to this worker and leave it: lease, claimer, sweeper and watchdog as one thing with a start and an end."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING

from sandfleet_worker.delivery.claims import Claimer
from sandfleet_worker.delivery.held import Held
from sandfleet_worker.delivery.leases import REDIS_ERRORS, Lease
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.sweep import Sweeper
from sandfleet_worker.delivery.turns import Turns
from sandfleet_worker.delivery.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis
    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.delivery.ledger import Claim, Identity
    from sandfleet_worker.delivery.slots import HostSlots

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 15.0
"""How long to wait for an answer of Redis: an outcome of many MiB takes its time."""
SETTLE_PAUSE_SECONDS = 0.5
EXIT_LOST = 75
"""sysexits(3), EX_TEMPFAIL: the supervisor starts the worker again."""


class Intake:
    """One worker's hold on its jobs. `stop` ends the claims, `close` everything.

    `connect` makes a client that waits so many seconds for an answer. The lease has its own, so that no big transfer delays a
    beat, and with less patience: where packets vanish, only a new try finds out that they come through again.
    """

    def __init__(
        self, settings: WorkerSettings, identity: Identity, slots: HostSlots, connect: Callable[[float], redis.Redis]
    ) -> None:
        self._settings = settings
        shared, for_claims = connect(TIMEOUT_SECONDS), connect(TIMEOUT_SECONDS)
        for_lease = connect(min(TIMEOUT_SECONDS, settings.lease_seconds))
        self._clients = (shared, for_claims, for_lease)
        self.ledger = Ledger(shared, identity, settings.result_ttl_seconds)
        self.held = Held(settings.concurrency)
        self._is_stopping: Callable[[], bool] = lambda: False
        self._end_job: Callable[[Sequence[str]], None] | None = None
        self._end_all: Callable[[], None] | None = None
        self.lease = Lease(
            Ledger(for_lease, identity, settings.result_ttl_seconds),
            settings.lease_seconds,
            job_ids=self.held.job_ids,
            on_cancelled=self._on_cancelled,
            on_lost=self._on_lost,
        )
        self.claimer = Claimer(
            for_claims,
            Ledger(for_claims, identity, settings.result_ttl_seconds),
            slots,
            self.held,
            Turns(settings.queue, settings.queues),
            is_stopping=lambda: self.lease.is_lost or self._is_stopping(),
        )
        self.sweeper = Sweeper(self.ledger, self.lease, settings.max_spec_bytes)
        self.watchdog = Watchdog(self.lease, self.claimer, self.held, settings.drain_seconds)
        self._given_up = threading.Event()

    def open(self) -> None:
        """Begin the lease; raises ``redis.RedisError`` if Redis is not there."""
        self.lease.start()
        self.sweeper.start()

    def start(
        self,
        receive: Callable[[Claim], None],
        *,
        is_stopping: Callable[[], bool],
        end_job: Callable[[Sequence[str]], None],
        end_all: Callable[[], None],
    ) -> None:
        """Begin to claim, once; `receive` gets each job in the claimer's thread."""
        if self.claimer.is_started:
            return
        self._is_stopping, self._end_job, self._end_all = is_stopping, end_job, end_all
        self.watchdog.start()
        self.claimer.start(receive)

    def _on_cancelled(self, job_ids: Sequence[str]) -> None:
        if self._end_job is not None:
            self._end_job(job_ids)

    def _on_lost(self) -> None:
        if self._end_all is not None:
            self._end_all()

    def stop(self) -> None:
        """Claim no more; what runs goes on, and the lease with it."""
        self.watchdog.stop()
        self.claimer.stop()

    def give_up(self) -> None:
        """Let nothing wait for Redis any longer: what cannot be settled now is taken over by others."""
        self._given_up.set()

    def close(self) -> None:
        """End everything; jobs that are still held are taken over by others at once."""
        self.stop()
        self.sweeper.stop()
        self.lease.stop()
        for client in self._clients:
            client.close()

    def limit_attempts(self, claim: Claim, max_attempts: int) -> None:
        """Note what the spec of a stock producer's job says; an outage is waited for, however long, but not past `give_up`."""
        is_told = False
        while True:
            try:
                self.ledger.limit_attempts(claim, max_attempts)
            except REDIS_ERRORS as error:
                if not is_told:
                    text = "job %s waits for Redis before its start: %s"
                    log.warning(text, claim.job_id, error, extra={"action": "start_waits", "job_id": claim.job_id})
                is_told = True
                if self._given_up.wait(SETTLE_PAUSE_SECONDS):
                    return
            else:
                return

    def settle(self, claim: Claim, act: Callable[[], bool]) -> bool:
        """Call `act`, which finishes or requeues `claim`, until Redis has heard it, and forget the claim.

        Returns whether the claim was still ours. An outage is waited for, however long, but not past `give_up`.
        """
        extra = {"action": "settle_waits", "job_id": claim.job_id}
        is_told = is_ours = False
        try:
            while True:
                try:
                    is_ours = act()
                except REDIS_ERRORS as error:
                    if self._given_up.is_set():
                        text = "job %s is left to others, Redis does not hear how it ended: %s"
                        log.error(text, claim.job_id, error, extra=extra | {"action": "settle_failed"})  # noqa: TRY400
                        return False
                    if not is_told:
                        log.warning("job %s has ended and waits for Redis: %s", claim.job_id, error, extra=extra)
                    is_told = True
                    self._given_up.wait(SETTLE_PAUSE_SECONDS)
                else:
                    break
        finally:
            self.held.remove(claim)
        if not is_ours:
            text = "job %s was taken over by another worker: what it did here does not count"
            log.warning(text, claim.job_id, extra=extra | {"action": "fenced"})
        return is_ours

    def wait_until_idle(self, timeout_seconds: float, is_hurried: Callable[[], bool]) -> bool:
        """Wait for every held job to be settled; return False when time is up, or the wait is `is_hurried`."""
        deadline = time.monotonic() + timeout_seconds
        while self.held.job_ids():
            if time.monotonic() > deadline or is_hurried():
                return False
            time.sleep(0.02)
        return True
