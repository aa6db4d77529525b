"""Lease, claimer, sweeper and watchdog of one worker, as one object with a start and an end."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from sandfleet_worker.delivery.announcer import Announcer
from sandfleet_worker.delivery.claim import Claim, Refused
from sandfleet_worker.delivery.claim_comparison import ClaimComparison
from sandfleet_worker.delivery.claimer import Claimer
from sandfleet_worker.delivery.held_claims import HeldClaims
from sandfleet_worker.delivery.host_report import HostReport, Measured
from sandfleet_worker.delivery.image_pins import ImagePins
from sandfleet_worker.delivery.lease import BEATS_PER_LEASE, Lease
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.outages import REDIS_ERRORS, NotAnswered, call_until_answered
from sandfleet_worker.delivery.queue_rotation import QueueRotation
from sandfleet_worker.delivery.redis_memory import RedisMemory
from sandfleet_worker.delivery.replicas import Replicas
from sandfleet_worker.delivery.settlement import FailedAttempt, Finish, GiveBack, WorkerStops
from sandfleet_worker.delivery.sweeper import Sweeper
from sandfleet_worker.delivery.watchdog import Watchdog
from sandfleet_worker.delivery.worker_exit import EXIT_LOST, EXIT_STALLED, WorkerExit
from sandfleet_worker.system.supervised_thread import Backoff

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import redis
    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.delivery.announcer import HostFacts
    from sandfleet_worker.delivery.host_slots import HostSlots
    from sandfleet_worker.delivery.identity import Identity
    from sandfleet_worker.delivery.settlement import PutBack, Settlement
    from sandfleet_worker.metrics.counts import JobCounts

__all__ = ["EXIT_LOST", "TIMEOUT_SECONDS", "Intake"]
log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT_SECONDS = 15.0
"""Timeout of a call to Redis: an outcome of many MiB takes its time."""


class Intake:
    """Takes jobs from Redis and settles them. `stop` ends the claims, `close` everything.

    `connect` returns a client with a timeout in seconds. The lease has a client of its own, so that
    a large transfer delays no beat, with a shorter timeout: where packets get lost, only a new try
    finds out that they arrive again. `read_facts` describes this host; None announces nothing.
    `measure` is for the reports of its beats; `counts` are for the worker's metrics, if it has any.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        identity: Identity,
        slots: HostSlots,
        connect: Callable[[float], redis.Redis],
        leave: Callable[[int], None] = os._exit,
        *,
        read_facts: Callable[[], HostFacts] | None = None,
        counts: JobCounts | None = None,
        measure: Callable[[], Measured] = lambda: Measured({}),
    ) -> None:
        self._settings, self._identity, self._counts = settings, identity, counts
        self.exit = WorkerExit(settings.drain_seconds, leave)
        shared, for_claims = connect(TIMEOUT_SECONDS), connect(TIMEOUT_SECONDS)
        for_lease = connect(min(TIMEOUT_SECONDS, settings.lease_seconds))
        self._clients = (shared, for_claims, for_lease)
        self.ledger = self._new_ledger(shared)
        beat_seconds = settings.lease_seconds / BEATS_PER_LEASE
        self.held_claims = HeldClaims(settings.concurrency, beat_seconds, settings.waiting_jobs)
        self.report = HostReport(measure, self.held_claims)
        self._given_up, self._pins = threading.Event(), ImagePins()
        self._is_stopping: Callable[[], bool] = lambda: False
        self._end_job: Callable[[Mapping[str, str]], None] | None = None
        self._end_all: Callable[[], None] | None = None
        self._must_end_jobs = False
        ledger = self._new_ledger(for_lease)
        self.comparison = ClaimComparison(ledger, self.held_claims, lambda: self.claimer.claim_id)
        self.lease = self._new_lease(ledger)
        self.claimer = self._new_claimer(for_claims, slots)
        self.announcer = read_facts and Announcer(self.ledger, read_facts, self.exit.drain, self.report)
        self.sweeper = Sweeper(self.ledger, self.lease, settings.max_spec_bytes, self.exit.drain)
        seconds, abandon, on_failure = settings.drain_seconds, self.exit.abandon, self.exit.drain
        self.watchdog = Watchdog(
            self.lease, self.claimer, self.held_claims, seconds, abandon=abandon, on_failure=on_failure
        )

    def _new_ledger(self, client: redis.Redis) -> Ledger:
        settings = self._settings
        return Ledger(client, self._identity, settings.result_ttl_seconds, Replicas.of(settings), self._counts)

    def _new_lease(self, ledger: Ledger) -> Lease:
        return Lease(
            ledger,
            self._settings.lease_seconds,
            report=self.report,
            on_cancelled=self._on_cancelled,
            on_lost=self._on_lost,
            on_failure=self._on_lease_failure,
            comparison=self.comparison,
        )

    def _new_claimer(self, client: redis.Redis, slots: HostSlots) -> Claimer:
        return Claimer(
            client,
            self._new_ledger(client),
            slots,
            self.held_claims,
            QueueRotation(self._settings.queue, self._settings.queues),
            memory=RedisMemory(client, self._settings.claim_memory_percent),
            is_stopping=lambda: self.lease.is_lost or self._is_stopping(),
            on_unstarted=self._settle_unstarted,
            on_failure=self.exit.drain,
        )

    def open(self) -> None:
        """Begin the lease. Raises ``redis.RedisError`` where Redis is not there."""
        self.lease.start()
        if self.announcer:
            self.announcer.start()
        self.sweeper.start()

    def start(
        self,
        receive: Callable[[Claim], None],
        *,
        is_stopping: Callable[[], bool],
        end_job: Callable[[Mapping[str, str]], None],
        end_all: Callable[[], None],
        withdraw: Callable[[Sequence[str], str], None],
    ) -> None:
        """Begin to claim, once; `receive` gets jobs in the claimer's thread, `withdraw` ids to give back."""
        if self.claimer.is_started:
            return
        self.report.mark.withdraw = withdraw
        self._is_stopping, self._end_job, self._end_all = is_stopping, end_job, end_all
        if self._must_end_jobs:  # the lease was lost before this
            end_all()
        self.watchdog.start()
        self.claimer.start(receive)

    def _on_cancelled(self, reasons: Mapping[str, str]) -> None:
        if self._end_job is not None:
            self._end_job(reasons)

    def _on_lost(self) -> None:
        # First, and also before the consumer has started: a worker without a lease must end.
        self.exit.withdraw("the lease is lost", EXIT_LOST)
        self._end_jobs()

    def _on_lease_failure(self, why: str) -> None:
        """End the worker: its lease is renewed no longer, so others take over its jobs soon."""
        self.exit.withdraw(why, EXIT_STALLED)
        self._end_jobs()

    def _end_jobs(self) -> None:
        self._must_end_jobs = True
        if self._end_all is not None:
            self._end_all()

    def stop(self) -> None:
        """Claim no more; running jobs and the lease go on."""
        self.lease.is_stopping = True
        self.watchdog.stop()
        self.claimer.stop()

    def give_up(self) -> None:
        """Wait for Redis no longer: others take over the claims that are not settled by then."""
        self._given_up.set()

    def close(self) -> None:
        """End everything; others take over the claims that are still held at once."""
        self.stop()
        if self.announcer:
            self.announcer.stop()
        self.sweeper.stop()
        self.lease.stop()
        for client in self._clients:
            client.close()

    def limit_attempts(self, claim: Claim, max_attempts: int, queue_ttl_seconds: float) -> Claim:
        """Note the attempts, and the time in the queue, that a stock producer's spec allows.

        Return the claim that says so.
        """
        with contextlib.suppress(NotAnswered):
            self._call_before_start(
                "start", claim, lambda: self.ledger.limit_attempts(claim, max_attempts, queue_ttl_seconds)
            )
        self.held_claims.limit_attempts(known := replace(claim, max_attempts=max_attempts))
        return known

    def note_wait(self, claim: Claim) -> bool:
        """Note that a job waits unstarted; return False if it is not ours, or after `give_up`."""
        try:
            return self._call_before_start("wait", claim, lambda: self.ledger.wait(claim))
        except NotAnswered:
            return False

    def start_job(self, claim: Claim) -> Claim | Refused:
        """Note that a waiting job starts; return its claim with the attempt, or why it may not."""
        try:
            return self._call_before_start(
                "start", claim, lambda: self.ledger.start(claim, self.held_claims.find_slot(claim))
            )
        except NotAnswered:
            return Refused.FENCED

    def pin_image(self, claim: Claim, batch: str, name: str, digest: str = "") -> str:
        """Return the recorded digest of an image's name for the batch, or else record `digest`.

        Without an answer from Redis it is `digest`, after `give_up`: the job ends then anyway.
        """
        # The call that starts a later run may have dropped what was known.
        if claim.run == 1 and (known := self._pins.find(batch, name)):
            return known
        with contextlib.suppress(NotAnswered):
            digest = self._call_before_start("pin", claim, lambda: self.ledger.pin_image(batch, name, digest))
            if digest:
                self._pins.note(batch, name, digest)
        return digest

    def read_pin(self, claim: Claim) -> str:
        """Return the image digest of the job's earlier run, which this one keeps; empty: none."""
        with contextlib.suppress(NotAnswered):
            return self._call_before_start("pin", claim, lambda: self.ledger.read_pin(claim.job_id))
        return ""

    def _call_before_start(self, name: str, claim: Claim, act: Callable[[], T]) -> T:
        """Call `act` until Redis answers, through an outage of any length.

        Raises:
            NotAnswered: `give_up` was called.
        """
        backoff = Backoff(name, subject=f"job {claim.job_id} waits for Redis before its start")
        return call_until_answered(act, backoff, self._given_up.wait)

    def has_other_host(self, needs: str, claim: Claim) -> bool:
        """Whether another live worker has what the job needs; False where Redis does not say."""
        try:
            return self.ledger.has_other_host(needs, claim.queue, claim.job_id)
        except REDIS_ERRORS:
            return False

    def put_back(self, claim: Claim, why: PutBack, *, lacks_memory: bool = False) -> None:
        """Give back a job this host cannot run (`lacks_memory`: now), in the claimer's thread."""
        extra = {"action": "job_put_back", "job_id": claim.job_id}
        log.info("job %s is put back: %s", claim.job_id, why.text, extra=extra)
        self.settle(claim, why, in_claimer=True)
        if lacks_memory:
            self.claimer.wait_for_memory()

    def settle(self, claim: Claim, how: Settlement, *, in_claimer: bool = False) -> bool:
        """End `claim` in the way `how`, and hold it no more; return False if it is not ours.

        Waits through an outage of any length, but not past `give_up`; the claimer's thread (`in_claimer`)
        also waits no longer once the claims end. Another worker takes over what cannot be settled.
        """
        pause = self._pause_claimer if in_claimer else self._given_up.wait
        extra = {"job_id": claim.job_id}
        backoff = Backoff("settle", subject=f"the end of job {claim.job_id} waits for Redis")
        try:
            is_ours = call_until_answered(lambda: self.ledger.settle(claim, how), backoff, pause)
        except NotAnswered as error:
            text = "cannot record the end of job %s, another worker takes it over: %s"
            log.error(text, claim.job_id, error, extra=extra | {"action": "settle_failed"})  # noqa: TRY400
            return False
        finally:
            self.held_claims.remove(claim)
        if not is_ours:
            text = "job %s was taken over by another worker: what it did here does not count"
            log.warning(text, claim.job_id, extra=extra | {"action": "fenced"})
        elif isinstance(how, Finish) and not self.ledger.are_replicas_there:
            self.comparison.note_unsafe_end(claim)
        return is_ours

    def pause(self, seconds: float) -> bool:
        """Wait for so many seconds; return True at once after `give_up`."""
        return self._given_up.wait(seconds)

    def _pause_claimer(self, seconds: float) -> bool:
        return self._given_up.is_set() or self.claimer.pause_for(seconds)

    def _settle_unstarted(self, claim: Claim, failure: Exception) -> None:
        how = GiveBack() if isinstance(failure, WorkerStops) else FailedAttempt.of(failure)
        self.settle(claim, how, in_claimer=True)
