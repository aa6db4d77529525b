"""Each worker's part of the fleet's upkeep.

Take over dead workers' jobs, end expired jobs, drop old dead letters.
"""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

import redis
from sandfleet_config.codes import ErrorCode
from sandfleet_config.fingerprint import spec_sha256
from sandfleet_config.messages import CANCELLED, EXPIRED, describe_expiry
from sandfleet_config.outcome import Outcome
from sandfleet_config.units import format_count

from sandfleet_worker.delivery.claim import MAX_STARTS, Flag
from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.outages import can_pass, is_outage
from sandfleet_worker.delivery.parked_jobs import ParkedJobs
from sandfleet_worker.delivery.read_message import find_facts, read_message
from sandfleet_worker.delivery.settlement import Finish, GiveBack, Retry
from sandfleet_worker.system.supervised_thread import Backoff, SupervisedThread, is_resource_error

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from sandfleet_config.run_summary import RunFacts

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.lease import Lease
    from sandfleet_worker.delivery.ledger import Ledger
    from sandfleet_worker.delivery.settlement import Settlement

log = logging.getLogger(__name__)

REAP_SECONDS = 0.5
EXPIRE_SECONDS = 1.0
DEAD_SECONDS = 60.0
DELAYS_SECONDS = (0.2, 2.0, 8.0)
"""Delay of a dead worker's job before its next try, by its number of charged attempts.

The job may have killed the worker.
"""
MAX_LOST_WAITS = MAX_STARTS - 1
"""A job is not charged for workers that die before it starts.

But it may have killed them: by its image, for one.
"""
AGAIN_SECONDS = 10.0
"""Delay before the next try to settle a claim that could not be settled."""


class Sweeper:
    """Sweeps every half second in a thread of its own. Sweepers of many workers may race.

    `on_failure` is called with the reason if the thread fails.
    """

    def __init__(self, ledger: Ledger, lease: Lease, max_spec_bytes: int, on_failure: Callable[[str], None]) -> None:
        self._ledger, self._lease, self._max_spec_bytes = ledger, lease, max_spec_bytes
        self._thread = SupervisedThread("sweeper", self._step, on_failure, can_pass=can_pass, backoff=Backoff("sweeps"))
        self._parked = ParkedJobs(ledger, ledger.read_fields)
        self._next_expire = self._next_dead = 0.0
        self.takeovers = 0
        """How many dead workers' jobs this worker has taken over."""
        self._passed_over: dict[str, float] = {}

    def start(self) -> None:
        """Begin to sweep."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the sweep that is under way."""
        self._thread.stop()

    def _step(self) -> float:
        self.sweep()
        # At random, so that the workers do not sweep at the same time.
        return REAP_SECONDS * random.uniform(0.6, 1.0)  # noqa: S311  no secret

    def sweep(self) -> None:
        """Sweep once."""
        self._reap()
        if self._ledger.has_due_jobs or self._parked.is_under_way:
            self._parked.sweep()
        now = time.monotonic()
        if now >= self._next_dead:
            self._next_dead = now + DEAD_SECONDS
            self._ledger.drop_stale_dead()
        if now >= self._next_expire:  # last: it fails where somebody else wrote its key
            self._next_expire = now + EXPIRE_SECONDS
            self._expire()

    def _reap(self) -> None:
        while not self._thread.stopping.is_set():
            now = time.monotonic()
            self._passed_over = {name: until for name, until in self._passed_over.items() if until > now}
            dead, taken = self._ledger.reap(may_take=self._lease.may_take_over, passed_over=self._passed_over)
            if dead:
                self.takeovers += 1
                log.warning("took over worker %s: its lease has ended", dead, extra={"action": "worker_reaped"})
            for claim, cancelled in taken:
                self._decide_safely(claim, cancelled)
            if not dead and not taken:
                return

    def _decide_safely(self, claim: Claim, cancelled: str) -> None:
        """Settle one claim; a failure is tried again later and does not block the others."""
        try:
            how, text = self._decide(claim, cancelled)
            self._ledger.settle(claim, how)
        except Exception as error:
            if is_outage(error) or is_resource_error(error):
                raise
            self._passed_over[claim.claim_id] = time.monotonic() + AGAIN_SECONDS
            text = "cannot decide about job %s of a dead worker, the next try follows in %g s"
            known = {"action": "take_over_failed", "job_id": claim.job_id}
            log.exception(text, claim.job_id, AGAIN_SECONDS, extra=known)
        else:
            extra: dict[str, Any] = {"action": "job_taken_over", "job_id": claim.job_id, "queue": claim.queue}
            if isinstance(how, Finish):
                extra["outcome"] = how.outcome
            log.warning("job %s of a dead worker %s", claim.job_id, text, extra=extra)

    def _decide(self, claim: Claim, cancelled: str) -> tuple[Settlement, str]:
        """Return how a dead worker's claim ends, and a text for the log.

        It ends with an outcome if the job may not run again. `cancelled` is why it was cancelled,
        empty if it was not.
        """
        if cancelled or claim.flag is Flag.CANCELLED:
            return self._end(claim, ErrorCode.CANCELLED, cancelled or CANCELLED)
        if claim.flag is Flag.EXPIRED:
            return self._end(claim, ErrorCode.EXPIRED, EXPIRED)
        if claim.lost_waits >= MAX_LOST_WAITS:
            workers = format_count(claim.lost_waits + 1, "worker")
            text = f"{workers} died while the job waited for its start, or its sandbox booted"
            return self._end(claim, ErrorCode.WORKER_LOST, text, dead_letter_reason=text)
        if claim.is_waiting or not claim.attempts:
            return GiveBack(), "goes back to the queue, it had not started"
        if claim.is_last_attempt or not self._may_run_again(claim):
            text = f"worker {claim.attempts[-1].worker} died with the job, and {self._say_why_last(claim)}"
            return self._end(claim, ErrorCode.WORKER_LOST, text, dead_letter_reason=text)
        number = min(max(1, claim.charged_count), len(DELAYS_SECONDS))
        last = claim.attempts[-1]
        charged = "charged" if last.charged else "not charged"
        how = Retry(ErrorCode.WORKER_LOST, DELAYS_SECONDS[number - 1], last.host)
        return how, f"goes back to the queue, its start is {charged}"

    def _end(self, claim: Claim, code: ErrorCode, text: str, dead_letter_reason: str = "") -> tuple[Settlement, str]:
        outcome, facts = self._outcome(claim, code, text)
        return Finish(outcome, dead_letter_reason=dead_letter_reason, facts=facts), f"ends as {code.value}"

    @staticmethod
    def _say_why_last(claim: Claim) -> str:
        return claim.describe_limit() if claim.is_last_attempt else "its retry_on does not name WORKER_LOST"

    def _may_run_again(self, claim: Claim) -> bool:
        """Whether the spec lets the job run again.

        A message that is no job is refused by the next worker.
        """
        job_message = read_message(open_message(claim), self._max_spec_bytes)
        return (
            job_message is None
            or job_message.request is None
            or ErrorCode.WORKER_LOST in job_message.request.spec.retry_on
        )

    def _outcome(self, claim: Claim, code: ErrorCode, message: str) -> tuple[Outcome, RunFacts]:
        facts: dict[str, Any] = {"attempts": claim.end_attempts(code)}
        job_message = read_message(open_message(claim), self._max_spec_bytes)
        if job_message is not None and job_message.request is not None:
            spec = job_message.request.spec
            facts |= {"batch": job_message.request.batch, "labels": spec.labels, "spec_sha256": spec_sha256(spec)}
        if claim.attempts:
            facts["host"] = claim.attempts[-1].host
        return Outcome.of(code, claim.job_id, message, **facts), find_facts(job_message)

    def _expire(self) -> None:
        for job_id in self._ledger.find_expired():
            try:
                self._expire_one(job_id)
            except redis.ResponseError as error:
                if is_outage(error):
                    raise
                # Its record cannot be used. It must not block the others.
                log.warning("cannot end job %s: %s", job_id, error, extra={"action": "expiry_failed", "job_id": job_id})
                self._ledger.forget_expiry(job_id)

    def _expire_one(self, job_id: str) -> None:
        message = describe_expiry(self._ledger.read_why(job_id))
        if self._ledger.end_queued_job(ErrorCode.EXPIRED, job_id, message):
            log.info("job %s has expired", job_id, extra={"action": "job_expired", "job_id": job_id})
        else:
            self._ledger.forget_expiry(job_id)
