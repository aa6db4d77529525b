"""How jobs come to this worker and leave it: lease, claimer, sweeper and watchdog as one thing with a start and an end."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome

from sandfleet_worker.delivery.announcer import Announcer
from sandfleet_worker.delivery.claim import Claim, Refused
from sandfleet_worker.delivery.claimer import Claimer
from sandfleet_worker.delivery.held_claims import Held
from sandfleet_worker.delivery.lease import BEATS_PER_LEASE, Lease
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.outages import REDIS_ERRORS, NotHeard, call_until_heard
from sandfleet_worker.delivery.queue_rotation import Turns
from sandfleet_worker.delivery.redis_memory import RedisMemory
from sandfleet_worker.delivery.sweeper import Sweeper
from sandfleet_worker.delivery.watchdog import Watchdog
from sandfleet_worker.delivery.worker_exit import EXIT_LOST, EXIT_STALLED, WorkerExit
from sandfleet_worker.system.supervised_thread import Backoff, is_resource_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis
    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.delivery.announcer import HostFacts
    from sandfleet_worker.delivery.claim import PutBack
    from sandfleet_worker.delivery.host_slots import HostSlots
    from sandfleet_worker.delivery.ledger import Identity

__all__ = ["EXIT_LOST", "TIMEOUT_SECONDS", "Intake"]
log = logging.getLogger(__name__)

UNRUN_DELAY_SECONDS = 1.0
TIMEOUT_SECONDS = 15.0
"""How long to wait for an answer of Redis: an outcome of many MiB takes its time."""


class Intake:
    """One worker's hold on its jobs. `stop` ends the claims, `close` everything.

    `connect` makes a client that waits so many seconds for an answer. The lease has its own, so that no big transfer delays a
    beat, and with less patience: where packets vanish, only a new try finds out that they come through again. `read_facts` says
    what this host has; without it nothing is announced.
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
    ) -> None:
        self._settings = settings
        self.exit = WorkerExit(settings.drain_seconds, leave)
        shared, for_claims = connect(TIMEOUT_SECONDS), connect(TIMEOUT_SECONDS)
        for_lease = connect(min(TIMEOUT_SECONDS, settings.lease_seconds))
        self._clients = (shared, for_claims, for_lease)
        self.ledger = Ledger(shared, identity, settings.result_ttl_seconds)
        self.held = Held(settings.concurrency, settings.lease_seconds / BEATS_PER_LEASE)
        self._is_stopping: Callable[[], bool] = lambda: False
        self._end_job: Callable[[Sequence[str]], None] | None = None
        self._end_all: Callable[[], None] | None = None
        self._must_end_jobs = False
        self.lease = Lease(
            Ledger(for_lease, identity, settings.result_ttl_seconds),
            settings.lease_seconds,
            claims=self.held.claims,
            on_cancelled=self._on_cancelled,
            on_lost=self._on_lost,
            on_failure=self._on_lease_failure,
        )
        self.claimer = Claimer(
            for_claims,
            Ledger(for_claims, identity, settings.result_ttl_seconds),
            slots,
            self.held,
            Turns(settings.queue, settings.queues),
            memory=RedisMemory(for_claims, settings.claim_memory_percent),
            is_stopping=lambda: self.lease.is_lost or self._is_stopping(),
            on_unstarted=self._settle_unstarted,
            on_failure=self.exit.drain,
        )
        self.announcer = read_facts and Announcer(self.ledger, read_facts, self.exit.drain)
        self.sweeper = Sweeper(self.ledger, self.lease, settings.max_spec_bytes, self.exit.drain)
        self.watchdog = Watchdog(
            self.lease,
            self.claimer,
            self.held,
            settings.drain_seconds,
            abandon=self.exit.abandon,
            on_failure=self.exit.drain,
        )
        self._given_up = threading.Event()

    def open(self) -> None:
        """Begin the lease; raises ``redis.RedisError`` if Redis is not there."""
        self.lease.start()
        if self.announcer:
            self.announcer.start()
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
        if self._must_end_jobs:  # the lease was lost before this
            end_all()
        self.watchdog.start()
        self.claimer.start(receive)

    def _on_cancelled(self, job_ids: Sequence[str]) -> None:
        if self._end_job is not None:
            self._end_job(job_ids)

    def _on_lost(self) -> None:
        # First of all, and even if the consumer has not started: no worker without a lease lives on.
        self.exit.withdraw("the lease is lost", EXIT_LOST)
        self._end_jobs()

    def _on_lease_failure(self, why: str) -> None:
        """End: nobody renews the lease any more, and others take over what runs here when it ends."""
        self.exit.withdraw(why, EXIT_STALLED)
        self._end_jobs()

    def _end_jobs(self) -> None:
        self._must_end_jobs = True
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
        if self.announcer:
            self.announcer.stop()
        self.sweeper.stop()
        self.lease.stop()
        for client in self._clients:
            client.close()

    def limit_attempts(self, claim: Claim, max_attempts: int) -> None:
        """Note what the spec of a stock producer's job says; an outage is waited for, however long, but not past `give_up`."""
        backoff = Backoff("start", subject=f"job {claim.job_id} waits for Redis before its start")
        with contextlib.suppress(NotHeard):
            call_until_heard(lambda: self.ledger.limit_attempts(claim, max_attempts), backoff, self._given_up.wait)

    def note_wait(self, claim: Claim) -> bool:
        """Note that the job waits and has not started; return False if it is not ours any more, or Redis does not hear it."""
        backoff = Backoff("wait", subject=f"job {claim.job_id} waits for Redis before its start")
        try:
            return call_until_heard(lambda: self.ledger.wait(claim), backoff, self._given_up.wait)
        except NotHeard:
            return False

    def start_job(self, claim: Claim) -> Claim | Refused:
        """Note that a job that waited starts; return its claim with the attempt, or why it may not start."""
        backoff = Backoff("start", subject=f"job {claim.job_id} waits for Redis before its start")
        try:
            return call_until_heard(lambda: self.ledger.start(claim), backoff, self._given_up.wait)
        except NotHeard:
            return Refused.FENCED

    def tell_drained(self, claim: Claim) -> None:
        """End the attempt of a job that may not start again, not charged; its outcome follows, and says so, too."""
        backoff = Backoff("settle", subject=f"the end of job {claim.job_id} waits for Redis")
        with contextlib.suppress(NotHeard):
            call_until_heard(lambda: self.ledger.tell_drained(claim), backoff, self._given_up.wait)

    def settle(self, claim: Claim, act: Callable[[], bool]) -> bool:
        """Call `act`, which finishes or requeues `claim`, until Redis has heard it, and forget the claim.

        Returns whether the claim was still ours. An outage is waited for, however long, but not past `give_up`.
        """
        return self._settle(claim, act, self._given_up.wait)

    def settle_unrun(self, claim: Claim, failure: Exception | None) -> None:
        """Settle a job that ended without an outcome by a fault of ours, as a failed attempt.

        Its claim must not stay, seen by nobody, under a lease that is kept: the job would be running for ever.
        """
        self._settle(claim, self._fail_attempt(claim, failure), self._given_up.wait)

    def reserve(self, claim: Claim, memory_bytes: int) -> bool:
        """Reserve memory of the host for a held claim; return False where there is not so much."""
        return self.held.reserve(claim, memory_bytes)

    def has_other_host(self, needs: str, claim: Claim) -> bool:
        """Whether another live worker has what the claim's job needs; False where Redis does not say."""
        try:
            return self.ledger.has_other_host(needs, claim.queue, claim.job_id)
        except REDIS_ERRORS:
            return False

    def put_back(self, claim: Claim, why: PutBack, *, is_short: bool = False) -> None:
        """Give a job back that this host cannot run; called in the claimer's thread. `is_short`: for want of memory."""
        extra = {"action": "job_put_back", "job_id": claim.job_id}
        log.info("job %s is put back: %s", claim.job_id, why.text, extra=extra)
        self.settle_in_claimer(claim, lambda: self.ledger.put_back(claim, why))
        if is_short:
            self.claimer.wait_for_memory()

    def settle_in_claimer(self, claim: Claim, act: Callable[[], bool]) -> bool:
        """Settle in the claimer's thread, which must not wait for Redis once it is told to end."""

        def pause(seconds: float) -> bool:
            return self._given_up.is_set() or self.claimer.pause_for(seconds)

        return self._settle(claim, act, pause)

    def _settle_unstarted(self, claim: Claim, failure: Exception) -> None:
        self.settle_in_claimer(claim, self._fail_attempt(claim, failure))

    def _fail_attempt(self, claim: Claim, failure: Exception | None) -> Callable[[], bool]:
        """Return the call that counts the attempt, and queues the job for the next or ends it."""
        code, text = ErrorCode.INTERNAL, "a fault in sandfleet itself: see the worker's log"
        if failure is not None and is_resource_error(failure):
            text = "the host had no descriptors, threads, memory or disk left to run the job: see the worker's log"
            code = ErrorCode.HOST_RESOURCES

        def act() -> bool:
            started = self.ledger.start(claim) if claim.is_waiting else claim  # a try that failed counts
            known = started if isinstance(started, Claim) else claim
            if not known.is_last_attempt:
                return self.ledger.retry(known, code, UNRUN_DELAY_SECONDS)
            outcome = Outcome.of(code, known.job_id, text, attempts=known.end_attempts(code))
            return self.ledger.finish(replace(known, reason=text), outcome)

        return act

    def _settle(self, claim: Claim, act: Callable[[], bool], pause: Callable[[float], bool]) -> bool:
        extra = {"job_id": claim.job_id}
        backoff = Backoff("settle", subject=f"the end of job {claim.job_id} waits for Redis")
        try:
            is_ours = call_until_heard(act, backoff, pause)
        except NotHeard as error:
            text = "job %s is left to others, Redis does not hear how it ended: %s"
            log.error(text, claim.job_id, error, extra=extra | {"action": "settle_failed"})  # noqa: TRY400
            return False
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
