"""What any worker does for all: takes dead workers over, ends what waited too long."""

from __future__ import annotations

import logging
import random
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sandfleet_config.errors import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.wire import spec_sha256
from sandfleet_config.words import CANCELLED

from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.leases import REDIS_ERRORS
from sandfleet_worker.delivery.ledger import Flag
from sandfleet_worker.messages import read_delivery

if TYPE_CHECKING:
    from typing import Any

    from sandfleet_worker.delivery.leases import Lease
    from sandfleet_worker.delivery.ledger import Claim, Ledger

log = logging.getLogger(__name__)

REAP_SECONDS = 0.5
EXPIRE_SECONDS = 1.0
DEAD_SECONDS = 60.0
EXPIRED = "nobody took the job within its time in the queue"


class Sweeper:
    """Looks around in a thread of its own; many workers' sweepers may race."""

    def __init__(self, ledger: Ledger, lease: Lease, max_spec_bytes: int) -> None:
        self._ledger, self._lease, self._max_spec_bytes = ledger, lease, max_spec_bytes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)
        self._next_expire = self._next_dead = 0.0
        self._is_failing = False

    def start(self) -> None:
        """Begin to look around."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after what is under way."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        # Not in step with each other, so that the fleet looks more often than each of its workers.
        while not self._stop.wait(REAP_SECONDS * random.uniform(0.6, 1.0)):  # noqa: S311  no secret
            try:
                self.sweep()
            except REDIS_ERRORS as error:
                if not self._is_failing:
                    log.warning("cannot look after dead workers: %s", error, extra={"action": "sweep_failed"})
                self._is_failing = True
            except Exception:
                log.exception("a sweep failed", extra={"action": "sweep_failed"})
            else:
                self._is_failing = False

    def sweep(self) -> None:
        """Look around once."""
        self._reap()
        now = time.monotonic()
        if now >= self._next_expire:
            self._next_expire = now + EXPIRE_SECONDS
            self._expire()
        if now >= self._next_dead:
            self._next_dead = now + DEAD_SECONDS
            self._ledger.drop_stale_dead()

    def _reap(self) -> None:
        while not self._stop.is_set():
            dead, taken = self._ledger.reap(may_take=self._lease.may_take_over)
            if dead:
                log.warning("took over worker %s: its lease has ended", dead, extra={"action": "worker_reaped"})
            for claim, is_cancelled in taken:
                self._decide(claim, is_cancelled=is_cancelled)
            if not dead and not taken:
                return

    def _decide(self, claim: Claim, *, is_cancelled: bool) -> None:
        """Settle a dead worker's job: its outcome if it may not run again, else back to the queue."""
        lost = claim.attempts[-1] if claim.attempts else None
        if is_cancelled:
            self._ledger.finish(claim, self._outcome(claim, ErrorCode.CANCELLED, CANCELLED))
            self._tell(claim, "ends as CANCELLED")
        elif (
            claim.flag is Flag.START and lost is not None and (claim.is_last_attempt or not self._may_run_again(claim))
        ):
            count = len(claim.attempts)
            text = f"worker {lost.worker} died with the job, and no try is left ({count} of {claim.max_attempts})"
            claim = replace(claim, reason=text)
            self._ledger.finish(claim, self._outcome(claim, ErrorCode.WORKER_LOST, text))
            self._tell(claim, "ends as WORKER_LOST")
        else:
            self._ledger.retry(claim, ErrorCode.WORKER_LOST)
            self._tell(claim, "goes back to the queue")

    def _may_run_again(self, claim: Claim) -> bool:
        """Whether the spec lets a dead worker's job run again; a message that is no job is refused by whoever has it next."""
        delivery = read_delivery(open_message(claim), self._max_spec_bytes)
        return delivery is None or delivery.request is None or ErrorCode.WORKER_LOST in delivery.request.spec.retry_on

    def _tell(self, claim: Claim, what: str) -> None:
        text = "job %s of a dead worker %s"
        log.warning(text, claim.job_id, what, extra={"action": "job_taken_over", "job_id": claim.job_id})

    def _outcome(self, claim: Claim, code: ErrorCode, message: str) -> Outcome:
        facts: dict[str, Any] = {"attempts": claim.end_attempts(code)}
        delivery = read_delivery(open_message(claim), self._max_spec_bytes)
        if delivery is not None and delivery.request is not None:
            spec = delivery.request.spec
            facts |= {"batch": delivery.request.batch, "labels": spec.labels, "spec_sha256": spec_sha256(spec)}
        if claim.attempts:
            facts["host"] = claim.attempts[-1].host
        return Outcome.of(code, claim.job_id, message, **facts)

    def _expire(self) -> None:
        for job_id in self._ledger.find_expired():
            batch = self._ledger.read_batch(job_id)
            if self._ledger.end_queued(Outcome.of(ErrorCode.EXPIRED, job_id, EXPIRED, batch=batch)):
                log.info("job %s has expired", job_id, extra={"action": "job_expired", "job_id": job_id})
            else:
                self._ledger.forget_expiry(job_id)
