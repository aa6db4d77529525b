"""The claimer: takes a slot of the host, then a job, and hands it on."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sandfleet_config.errors import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import KEY_PREFIX

from sandfleet_worker.delivery.leases import REDIS_ERRORS
from sandfleet_worker.delivery.ledger import LeaseLate, LeaseLost

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from sandfleet_worker.delivery.held import Held
    from sandfleet_worker.delivery.ledger import Claim, Ledger
    from sandfleet_worker.delivery.slots import HostSlots
    from sandfleet_worker.delivery.turns import Turns

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.25
"""How often an idle worker looks by itself: stock producers wake nobody."""
LATE_SECONDS = 0.05
QUEUES_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 1.0
WAKE_KEY = f"{KEY_PREFIX}wake"


class Claimer:
    """Claims jobs in a thread of its own and calls `receive` with each; it knows no channel, so none can lose a job."""

    def __init__(
        self,
        client: redis.Redis,
        ledger: Ledger,
        slots: HostSlots,
        held: Held,
        turns: Turns,
        *,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._redis: Any = client
        self._ledger, self._slots, self._held, self._turns = ledger, slots, held, turns
        self._is_told_to_stop = is_stopping
        self._receive: Callable[[Claim], None] | None = None
        self._stop = threading.Event()
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="claimer", daemon=True)
        self._queues_read = 0.0
        self._last_wake: bytes | None = None
        self._backoff = 0.0
        self.progressed = time.monotonic()
        """When it last went on: it does several times a second, but where one call to Redis takes longer."""
        self.is_broken = False

    @property
    def is_started(self) -> bool:
        """Whether the thread has ever run."""
        return self._thread.ident is not None

    def start(self, receive: Callable[[Claim], None]) -> None:
        """Begin to claim."""
        self._receive = receive
        self._progress()
        self._thread.start()

    def end(self) -> None:
        """Claim no more; a claim that is under way is still handed on."""
        if not self._stop.is_set():
            self._stop.set()
            os.eventfd_write(self._stop_fd, 1)

    def stop(self) -> None:
        """End, and wait for it."""
        self.end()
        if self.is_started:
            self._thread.join()

    def _progress(self) -> None:
        self.progressed = time.monotonic()

    def _is_stopping(self) -> bool:
        return self._stop.is_set() or self._is_told_to_stop()

    def _run(self) -> None:
        try:
            self._claim_jobs()
        except Exception:
            log.critical("the claimer has died", exc_info=True, extra={"action": "claimer_died"})
            self.is_broken = True

    def _claim_jobs(self) -> None:
        while not self._is_stopping():
            self._progress()
            if not self._held.wait_room(LOOK_SECONDS):
                continue
            slot = self._slots.acquire(self._stop_fd, self._progress)
            claim = None
            try:
                if slot is not None and not self._is_stopping():
                    claim = self._claim()
                    if claim is not None:
                        self._held.add(claim, slot)
            finally:
                if claim is None:
                    if slot is not None:
                        slot.release()
                    self._held.leave_room()
            if claim is not None:
                self._hand_on(claim)
            elif slot is not None:
                self._wait()

    def _hand_on(self, claim: Claim) -> None:
        assert self._receive is not None
        self._turns.served(claim.queue)
        try:
            self._receive(claim)
        except Exception:
            log.exception(
                "cannot start job %s", claim.job_id, extra={"action": "receive_failed", "job_id": claim.job_id}
            )
            self._settle_unstarted(claim)

    def _settle_unstarted(self, claim: Claim) -> None:
        """Count a fault of ours as an attempt: the claim must not stay unseen under a lease that is kept."""
        text = "a fault in sandfleet itself kept the job from starting: see the worker's log"
        try:
            if claim.is_last_attempt:
                self._ledger.finish(replace(claim, reason=text), Outcome.of(ErrorCode.INTERNAL, claim.job_id, text))
            else:
                self._ledger.retry(claim, ErrorCode.INTERNAL, delay_seconds=1.0)
        except REDIS_ERRORS:
            log.exception("job %s is left to others", claim.job_id, extra={"action": "claim_left_behind"})
        self._held.remove(claim)

    def _claim(self) -> Claim | None:
        """Claim one job; a call whose answer may be lost is repeated under the same id until it is known.

        What a stop leaves unknown stays under the lease, which ends with this worker.
        """
        claim_id = secrets.token_hex(12)
        while not self._is_stopping():
            self._progress()
            try:
                if time.monotonic() - self._queues_read > QUEUES_SECONDS:
                    self._turns.update(self._ledger.read_queues())
                    self._queues_read = time.monotonic()
                claim, may_be_more = self._ledger.claim(claim_id, self._turns.names())
            except LeaseLost:
                self._stop.wait(LOOK_SECONDS)  # the lease's thread hears it too, and ends the worker
                return None
            except LeaseLate:
                self._stop.wait(LATE_SECONDS)
            except REDIS_ERRORS as error:
                self._note_outage(error)
                self._stop.wait(self._backoff)
            else:
                self._note_recovery()
                if claim is not None or not may_be_more:
                    return claim
        return None

    def _note_outage(self, error: Exception) -> None:
        if not self._backoff:
            log.warning("cannot claim jobs: %s", error, extra={"action": "claims_interrupted"})
        self._backoff = min(MAX_BACKOFF_SECONDS, self._backoff * 2 or 0.05)

    def _note_recovery(self) -> None:
        if self._backoff:
            log.info("jobs are claimed again", extra={"action": "claims_resumed"})
        self._backoff = 0.0

    def _wait(self) -> None:
        """Sleep until a producer wakes everybody, or it is time to look."""
        try:
            if self._last_wake is None:
                newest = self._redis.xrevrange(WAKE_KEY, count=1)
                self._last_wake = newest[0][0] if newest else b"0-0"
            answer = self._redis.xread({WAKE_KEY: self._last_wake}, block=round(LOOK_SECONDS * 1000))
        except REDIS_ERRORS:
            self._last_wake = None
            self._stop.wait(LOOK_SECONDS)
            return
        if answer:
            entries = next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1]
            # RESP3 wraps a stream's entries in one more list.
            entries = entries[0] if entries and isinstance(entries[0], list) else entries
            self._last_wake = entries[-1][0]
            self._queues_read = 0.0  # it may be a new queue
