"""The claimer: takes a slot of the host, then a job, and hands it on."""

from __future__ import annotations

import logging
import os
import secrets
import threading
import time
from typing import TYPE_CHECKING, Any

from sandfleet_config.queues import KEY_PREFIX

from sandfleet_worker.delivery.ledger import LeaseLate, LeaseLost
from sandfleet_worker.delivery.outages import REDIS_ERRORS, can_pass
from sandfleet_worker.delivery.settlement import WorkerStops
from sandfleet_worker.system.supervised_thread import Backoff, SupervisedThread

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.held_claims import HeldClaims
    from sandfleet_worker.delivery.host_slots import HostSlots, Slot
    from sandfleet_worker.delivery.ledger import Ledger
    from sandfleet_worker.delivery.queue_rotation import QueueRotation
    from sandfleet_worker.delivery.redis_memory import RedisMemory

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
"""Poll interval of an idle worker: stock producers do not wake workers."""
CORDON_SECONDS = 1.0
"""Poll interval of a cordoned host: within so long it works again."""
LATE_SECONDS = 0.05
QUEUES_SECONDS = 1.0
WAKE_KEY = f"{KEY_PREFIX}wake"


class Claimer:
    """Claims jobs in a thread of its own and calls `receive` with each.

    It does not use kombu channels, so a dropped connection cannot lose a job.

    `on_unstarted` settles a claim that `receive` failed to start. `on_failure` is called with the
    reason if the thread fails. Both are called in the claimer's thread, `on_unstarted` also by `stop`.
    """

    def __init__(
        self,
        client: redis.Redis,
        ledger: Ledger,
        slots: HostSlots,
        held_claims: HeldClaims,
        rotation: QueueRotation,
        *,
        memory: RedisMemory,
        is_stopping: Callable[[], bool],
        on_unstarted: Callable[[Claim, Exception], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._redis: Any = client
        self._ledger, self._slots, self._held_claims, self._rotation = ledger, slots, held_claims, rotation
        self._memory = memory
        self._is_told_to_stop, self._on_unstarted = is_stopping, on_unstarted
        self._receive: Callable[[Claim], None] | None = None
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = SupervisedThread("claimer", self._step, on_failure, can_pass=can_pass, backoff=Backoff("claims"))
        self._is_paused = threading.Event()
        self._claim_id = ""
        self._is_in_doubt = False
        self._lacks_memory = False
        self._queues_read = 0.0
        self._last_wake: bytes | None = None
        self.progressed = time.monotonic()
        """When it last made progress (monotonic).

        It does so several times a second, unless a call to Redis takes longer.
        """

    @property
    def is_started(self) -> bool:
        """Whether the thread has ever run."""
        return self._thread.is_started

    @property
    def claim_id(self) -> str:
        """The id under which it claims now; empty when that claim is held, or given back."""
        return self._claim_id

    def start(self, receive: Callable[[Claim], None]) -> None:
        """Begin to claim."""
        self._receive = receive
        self._progress()
        self._thread.start()

    def pause(self) -> None:
        """Claim nothing until `resume`; a claim that is under way is still handed on."""
        self._is_paused.set()

    def resume(self) -> None:
        """Claim again."""
        self._is_paused.clear()

    def end(self) -> None:
        """Claim no more; a claim that is under way is still handed on."""
        if not self._thread.stopping.is_set():
            self._thread.tell_to_stop()
            os.eventfd_write(self._stop_fd, 1)

    def stop(self) -> None:
        """End, and wait for it; a job whose claim has got lost with its answer goes back to its queue."""
        self.end()
        self._thread.stop()
        if self._is_in_doubt and not self._thread.is_alive:
            self._is_in_doubt = False  # it is tried once
            try:
                self._give_back_lost()
            except Exception as error:  # noqa: BLE001  whatever it is, the worker stops
                text = "whether the last claim took a job is not known; if so, another worker takes it over: %s"
                log.warning(text, type(error).__name__, extra={"action": "claim_unknown"})

    def pause_for(self, seconds: float) -> bool:
        """Wait so long; return whether it is to end instead."""
        self._progress()
        return self._thread.stopping.wait(seconds) or self._is_stopping()

    def _progress(self) -> None:
        self.progressed = time.monotonic()

    def _is_stopping(self) -> bool:
        return self._thread.stopping.is_set() or self._is_told_to_stop()

    def _step(self) -> float | None:
        """Claim one job, if there is one, and hand it on; return how long to pause."""
        try:
            if self._is_in_doubt:
                self._give_back_lost()
            if not self._wait_for_capacity():
                return 0.0
            claim, has_slot = self._take()
        except LeaseLost:
            return POLL_SECONDS  # the lease's thread ends the worker
        except LeaseLate:
            return LATE_SECONDS
        if claim is not None:
            self._hand_on(claim)
        if self._lacks_memory:
            # Only the end of a job on this host frees memory; Redis does not wake us for it.
            self._lacks_memory = False
            self._slots.wait_for_release(POLL_SECONDS)
        elif self._ledger.is_cordoned:
            return CORDON_SECONDS
        elif claim is None and has_slot:
            self._wait()
        return None

    def _take(self) -> tuple[Claim | None, bool]:
        """Take a slot, and a job for it; return the claim, and whether there was a slot."""
        slot, claim = None, None
        try:
            self._slots.expect_release()  # before `acquire` sums the memory: a later end must wake `_step`
            slot = self._slots.acquire(self._stop_fd, self._progress)
            if slot is not None and not self._is_stopping() and not self._is_paused.is_set():
                claim = self._claim(slot)
        finally:
            if claim is None:
                if slot is not None:
                    slot.release(was_used=False)
                self._held_claims.return_capacity()
        return claim, slot is not None

    def _give_back_lost(self) -> None:
        """Give back the job that an earlier call took, if it took one: its answer has got lost.

        The job runs nowhere, so it does not wait until this worker may claim again. Raises as
        `Ledger.claim`.
        """
        self._progress()
        claim, _ = self._ledger.claim(self._claim_id, ())  # no queue: only what it took before
        if claim is not None:
            text = "job %s goes back to its queue: the answer that gave it to this worker has got lost"
            log.info(text, claim.job_id, extra={"action": "claim_given_back", "job_id": claim.job_id})
            self._on_unstarted(claim, WorkerStops())
            self._claim_id = ""  # after the claim is settled: see ClaimComparison
        # Else the next claim has the same id: a call that timed out may still reach Redis.
        self._is_in_doubt = False

    def wait_for_memory(self) -> None:
        """Let the next claim wait for an end on this host; called by `receive`."""
        self._lacks_memory = True

    def _wait_for_capacity(self) -> bool:
        """Wait until this worker may hold one more claim; return False where it stops first."""
        while True:
            self._progress()
            if self._is_stopping():
                self._thread.tell_to_stop()
                return False
            if self._is_paused.is_set() or self._memory.is_high():
                self._thread.stopping.wait(POLL_SECONDS)
            elif self._held_claims.take_capacity(POLL_SECONDS):
                return True

    def _claim(self, slot: Slot) -> Claim | None:
        """Claim one job and hold it with `slot`.

        Where a call fails, its answer may have got lost: `_give_back_lost`.
        """
        while not self._is_stopping():
            self._progress()
            if time.monotonic() - self._queues_read > QUEUES_SECONDS:
                self._rotation.update(self._ledger.read_queues())
                self._queues_read = time.monotonic()
            self._claim_id, self._is_in_doubt = self._claim_id or secrets.token_hex(12), True
            try:
                claim, may_be_more = self._ledger.claim(self._claim_id, self._rotation.names(), self._facts(slot))
            except (LeaseLost, LeaseLate):
                self._is_in_doubt = False
                raise
            self._is_in_doubt = False
            self._lacks_memory = self._ledger.lacks_memory
            if claim is not None:
                self._held_claims.add(claim, slot)
                self._claim_id = ""
            if claim is not None or not may_be_more:
                return claim
        return None

    def _facts(self, slot: Slot) -> dict[str, object]:
        """Return what this worker can take now: see claim.lua."""
        facts: dict[str, object] = {"slot": slot.number}
        memory = self._slots.last_memory  # summed when the slot was taken
        if memory is not None:
            facts["free"] = memory.free_for_new
        if self._held_claims.holds_suspect():
            facts["holds_suspect"] = True
        return facts

    def _hand_on(self, claim: Claim) -> None:
        assert self._receive is not None
        try:
            self._rotation.served(claim.queue)
            self._receive(claim)
        except WorkerStops as error:
            extra = {"action": "job_withdrawn", "job_id": claim.job_id}
            log.info("job %s goes back to the queue, it had not started: the worker stops", claim.job_id, extra=extra)
            self._on_unstarted(claim, error)
        except Exception as error:
            extra = {"action": "receive_failed", "job_id": claim.job_id}
            log.exception("cannot start job %s", claim.job_id, extra=extra)
            self._on_unstarted(claim, error)

    def _wait(self) -> None:
        """Sleep until a submit wakes the workers, or for `POLL_SECONDS`."""
        try:
            if self._last_wake is None:
                newest = self._redis.xrevrange(WAKE_KEY, count=1)
                self._last_wake = newest[0][0] if newest else b"0-0"
            answer = self._redis.xread({WAKE_KEY: self._last_wake}, block=round(POLL_SECONDS * 1000))
        except REDIS_ERRORS:
            self._last_wake = None
            self._thread.stopping.wait(POLL_SECONDS)
            return
        if answer:
            entries = next(iter(answer.values())) if isinstance(answer, dict) else answer[0][1]
            # RESP3 wraps a stream's entries in one more list.
            entries = entries[0] if entries and isinstance(entries[0], list) else entries
            self._last_wake = entries[-1][0]
            self._queues_read = 0.0  # it may be a new queue
