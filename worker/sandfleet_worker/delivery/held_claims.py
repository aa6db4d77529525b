"""The claims of this worker, each with its slot and the time by which its sandbox must be gone."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from sandfleet_worker.delivery.held_claim import HeldClaim

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.host_slots import Slot

LONGEST_WAIT_SECONDS = 3600.0
"""After so long a job that waits for its start counts as one that hangs."""


class HeldClaims:
    """The claims that this worker runs; safe for threads.

    A job counts within `limit`, the worker's `concurrency`, from its claim to its end. Up to
    `waiting_limit` jobs that wait long for something outside this host do not count meanwhile: for
    an image, for their files, or for the store to take what they left.

    `suspect_margin_seconds` should be the time between two beats of the lease. Whoever takes over
    from a dead worker knows only its last beat. With this margin the last suspect's time is over by
    that beat, so only the next suspect is charged.
    """

    def __init__(self, limit: int, suspect_margin_seconds: float = 0.0, waiting_limit: int = 0) -> None:
        self._suspect_margin_seconds = suspect_margin_seconds
        self._limit, self._waiting_limit = limit, waiting_limit
        self._counted = self._waiting = self._returning = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._entries: dict[str, HeldClaim] = {}

    def take_capacity(self, timeout_seconds: float) -> bool:
        """Wait to hold one more claim, within the worker's `concurrency`.

        Return False where it holds as many. Jobs whose wait is over come first.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._counted + self._returning < self._limit, timeout_seconds):
                return False
            self._counted += 1
            return True

    def return_capacity(self) -> None:
        """Undo `take_capacity`: there was no claim."""
        with self._changed:
            self._counted -= 1
            self._changed.notify_all()

    def take_back_capacity(self, claim: Claim, timeout_seconds: float) -> bool:
        """Let a job whose wait is over count again.

        Return False where the worker holds as many as it may by then.
        """
        with self._changed:
            found = self._entries.get(claim.claim_id)
            if found is None or found.has_capacity:
                return True
            if not self._changed.wait_for(lambda: self._counted < self._limit, timeout_seconds):
                return False
            self._forget_wait(found)
            found.has_capacity, found.is_returning = True, False
            self._counted += 1
            return True

    def _forget_wait(self, entry: HeldClaim) -> None:
        self._waiting -= 1
        self._returning -= entry.is_returning

    def add(self, claim: Claim, slot: Slot) -> None:
        """Hold `claim` with `slot`, after `take_capacity`."""
        with self._lock:
            self._entries[claim.claim_id] = HeldClaim(claim, slot)

    def expect_end(self, claim: Claim, within_seconds: float) -> None:
        """Note that the job's sandbox must be gone by then, whatever happens to it.

        Later, the job hangs.
        """
        with self._lock:
            found = self._entries.get(claim.claim_id)
            if found:
                found.within_seconds, found.latest_end = within_seconds, time.monotonic() + within_seconds

    def wait(self, claim: Claim, *, is_remote: bool = False) -> None:
        """Note that the job waits for its start, for `LONGEST_WAIT_SECONDS` at most.

        `is_remote`: for something outside this host, so that other jobs may run meanwhile.
        """
        with self._lock:
            if found := self._entries.get(claim.claim_id):
                found.claim, found.may_give_back, found.may_give_back_capacity = claim, True, is_remote
                found.latest_end = time.monotonic() + LONGEST_WAIT_SECONDS

    def give_back_slot(self, claim: Claim) -> None:
        """Free the slot of a job that waits long.

        The worker may hold another claim meanwhile.
        """
        with self._changed:
            found = self._entries.get(claim.claim_id)
            slot = found.take_slot() if found and found.may_give_back else None
            if found and slot and found.may_give_back_capacity:
                self._leave_capacity(found)
        if slot:
            slot.release()

    def end_wait(self, claim: Claim) -> bool:
        """Keep the slot from now on.

        Return whether it was given back, so that the job needs another one.
        """
        with self._lock:
            found = self._entries.get(claim.claim_id)
            if found:
                found.may_give_back = False
                if found.slot is None:
                    found.latest_end = None
                if not found.has_capacity and not found.is_returning:
                    found.is_returning = True
                    self._returning += 1
            return found is not None and found.slot is None

    def find_memory(self, claim: Claim) -> int:
        """Return the bytes of memory that the job reserves, or wants to reserve again."""
        with self._lock:
            found = self._entries.get(claim.claim_id)
        return found.memory_bytes if found else 0

    def set_slot(self, claim: Claim, slot: Slot) -> bool:
        """Give the job another slot.

        Free that slot and return False where the job's memory is not free.
        """
        with self._lock:
            found = self._entries.get(claim.claim_id)
        if found and (not found.memory_bytes or slot.reserve(found.memory_bytes)):
            with self._lock:
                if claim.claim_id in self._entries:
                    found.slot, found.latest_end = slot, time.monotonic() + LONGEST_WAIT_SECONDS
                    return True
        slot.release(was_used=False)
        return found is None

    def start(self, claim: Claim) -> None:
        """Note that a job that has waited starts: its limits count from now."""
        with self._lock:
            if found := self._entries.get(claim.claim_id):
                found.claim, found.started = claim, time.monotonic()
                found.latest_end = None if found.within_seconds is None else found.started + found.within_seconds

    def find(self, claim_id: str) -> Claim | None:
        """Return the claim with this id."""
        with self._lock:
            found = self._entries.get(claim_id)
        return found.claim if found else None

    def limit_attempts(self, claim: Claim) -> None:
        """Note the `max_attempts` of `claim`, which was read from the job's spec."""
        with self._lock:
            if found := self._entries.get(claim.claim_id):
                found.claim = claim

    def reserve(self, claim: Claim, memory_bytes: int) -> bool:
        """Reserve host memory for the claim's slot; return False where there is not so much."""
        with self._lock:
            found = self._entries.get(claim.claim_id)
            slot = found.slot if found else None
        if found is None or slot is None or not slot.reserve(memory_bytes, is_new=True):
            return False
        found.memory_bytes = memory_bytes
        return True

    def find_slot(self, claim: Claim) -> int | None:
        """Return the number of the claim's slot; None if it has none."""
        with self._lock:
            return slot.number if (found := self._entries.get(claim.claim_id)) and (slot := found.slot) else None

    def free_slot(self, claim: Claim) -> None:
        """Free the host's slot: the sandbox is gone, and recording the outcome may take long."""
        with self._lock:
            found = self._entries.get(claim.claim_id)
            if found:
                found.is_running, found.latest_end = False, None
            slot = found.take_slot() if found else None
        if slot:
            slot.release()

    def leave_capacity(self, claim: Claim) -> None:
        """Let the worker hold another claim: the job has ended, and the store has not taken its files yet."""
        with self._changed:
            found = self._entries.get(claim.claim_id)
            if found and found.has_capacity and not found.is_running:
                self._leave_capacity(found)

    def _leave_capacity(self, entry: HeldClaim) -> None:
        if self._waiting < self._waiting_limit:
            entry.has_capacity = False
            self._waiting, self._counted = self._waiting + 1, self._counted - 1
            self._changed.notify_all()

    def remove(self, claim: Claim) -> None:
        """Hold a settled claim no more, and free its slot; once."""
        with self._changed:
            found = self._entries.pop(claim.claim_id, None)
            slot = found.take_slot() if found else None
        if slot:
            slot.release()
        if found:
            with self._changed:
                if found.has_capacity:
                    self._counted -= 1
                else:
                    self._forget_wait(found)
                self._changed.notify_all()

    def claims(self) -> list[Claim]:
        """Return the claims held."""
        with self._lock:
            return [entry.claim for entry in self._entries.values()]

    def holds_suspect(self) -> bool:
        """Whether one of the jobs may have killed an earlier worker.

        A job that has outlived that run counts no longer.
        """
        with self._lock:
            return any(entry.is_suspect(self._suspect_margin_seconds) for entry in self._entries.values())

    def job_ids(self) -> list[str]:
        """Return the jobs held."""
        with self._lock:
            return [entry.claim.job_id for entry in self._entries.values()]

    def wait_until_idle(self, timeout_seconds: float, is_hurried: Callable[[], bool]) -> bool:
        """Wait for every held job to be settled; return False at the timeout or if `is_hurried`."""
        deadline = time.monotonic() + timeout_seconds
        while self.job_ids():
            if time.monotonic() > deadline or is_hurried():
                return False
            time.sleep(0.02)
        return True

    def waiting_job_ids(self) -> list[str]:
        """Return the jobs that wait and have not started."""
        with self._lock:
            return [entry.claim.job_id for entry in self._entries.values() if entry.claim.is_waiting]

    def running_jobs(self) -> list[tuple[str, int, int]]:
        """Return each job that has a sandbox or waits for one: id, slot, start in unix time.

        A job that waits started at 0, one without a slot has the slot -1.
        """
        offset = time.time() - time.monotonic()
        with self._lock:
            entries = [entry for entry in self._entries.values() if entry.is_running]
            return [
                (
                    entry.claim.job_id,
                    entry.slot.number if entry.slot else -1,
                    0 if entry.claim.is_waiting else round(entry.started + offset),
                )
                for entry in entries
            ]

    def running_job_ids(self) -> list[str]:
        """Return the jobs whose sandboxes are not gone yet."""
        with self._lock:
            return [entry.claim.job_id for entry in self._entries.values() if entry.is_running]

    def overdue_job_ids(self) -> list[str]:
        """Return the jobs whose sandboxes should be gone by now."""
        now = time.monotonic()
        with self._lock:
            entries = list(self._entries.values())
        return [entry.claim.job_id for entry in entries if entry.latest_end is not None and entry.latest_end < now]
