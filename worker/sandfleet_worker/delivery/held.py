"""What this worker holds: its claims, each with its slot and the time by which its sandbox must be gone."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandfleet_worker.delivery.ledger import Claim
    from sandfleet_worker.delivery.slots import Slot


@dataclass
class _Entry:
    """One claim; `latest_end` is monotonic, None where nobody has said yet or the sandbox is gone."""

    claim: Claim
    slot: Slot
    latest_end: float | None = None
    is_running: bool = True


class Held:
    """The claims that this worker runs; safe for threads."""

    def __init__(self, limit: int) -> None:
        self._room = threading.Semaphore(limit)
        self._lock = threading.Lock()
        self._held: dict[str, _Entry] = {}

    def wait_room(self, timeout_seconds: float) -> bool:
        """Take one of the worker's own places, or return False."""
        return self._room.acquire(timeout=timeout_seconds)

    def leave_room(self) -> None:
        """Give back a place for which there was no claim."""
        self._room.release()

    def add(self, claim: Claim, slot: Slot) -> None:
        """Hold `claim` in the place that was taken."""
        with self._lock:
            self._held[claim.claim_id] = _Entry(claim, slot)

    def expect_end(self, claim: Claim, within_seconds: float) -> None:
        """Note that the job's sandbox must be gone by then, whatever happens to it; later, the job hangs."""
        with self._lock:
            found = self._held.get(claim.claim_id)
            if found:
                found.latest_end = time.monotonic() + within_seconds

    def find(self, claim_id: str) -> Claim | None:
        """Return the claim with this id."""
        with self._lock:
            found = self._held.get(claim_id)
        return found.claim if found else None

    def replace(self, claim: Claim) -> None:
        """Put `claim` in the place of the one with its id: more is known about it now."""
        with self._lock:
            found = self._held.get(claim.claim_id)
            if found:
                found.claim = claim

    def reserve(self, claim: Claim, memory_bytes: int) -> bool:
        """Reserve memory of the host for the claim's slot; return False where there is not so much."""
        with self._lock:
            found = self._held.get(claim.claim_id)
        return found is not None and found.slot.reserve(memory_bytes)

    def free_slot(self, claim: Claim) -> None:
        """Free the host's slot: the sandbox is gone, only the outcome is on its way, and Redis may let it wait."""
        with self._lock:
            found = self._held.get(claim.claim_id)
            if found:
                found.is_running, found.latest_end = False, None
        if found:
            found.slot.release()

    def remove(self, claim: Claim) -> None:
        """Forget a claim that is settled, with its slot and place; once."""
        with self._lock:
            found = self._held.pop(claim.claim_id, None)
        if found:
            found.slot.release()
            self._room.release()

    def claims(self) -> list[Claim]:
        """Return the claims held."""
        with self._lock:
            return [entry.claim for entry in self._held.values()]

    def job_ids(self) -> list[str]:
        """Return the jobs held."""
        with self._lock:
            return [entry.claim.job_id for entry in self._held.values()]

    def running_job_ids(self) -> list[str]:
        """Return the jobs whose sandboxes are not gone yet."""
        with self._lock:
            return [entry.claim.job_id for entry in self._held.values() if entry.is_running]

    def overdue_job_ids(self) -> list[str]:
        """Return the jobs whose sandboxes should be gone by now."""
        now = time.monotonic()
        with self._lock:
            entries = list(self._held.values())
        return [entry.claim.job_id for entry in entries if entry.latest_end is not None and entry.latest_end < now]
