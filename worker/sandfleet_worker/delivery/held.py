"""What this worker holds: its claims, each with its slot."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandfleet_worker.delivery.ledger import Claim
    from sandfleet_worker.delivery.slots import Slot


class Held:
    """The claims that this worker runs, each with its slot; safe for threads."""

    def __init__(self, limit: int) -> None:
        self._room = threading.Semaphore(limit)
        self._lock = threading.Lock()
        self._held: dict[str, tuple[Claim, Slot]] = {}

    def wait_room(self, timeout_seconds: float) -> bool:
        """Take one of the worker's own places, or return False."""
        return self._room.acquire(timeout=timeout_seconds)

    def leave_room(self) -> None:
        """Give back a place for which there was no claim."""
        self._room.release()

    def add(self, claim: Claim, slot: Slot) -> None:
        """Hold `claim` in the place that was taken."""
        with self._lock:
            self._held[claim.claim_id] = claim, slot

    def find(self, claim_id: str) -> Claim | None:
        """Return the claim with this id."""
        with self._lock:
            found = self._held.get(claim_id)
        return found[0] if found else None

    def replace(self, claim: Claim) -> None:
        """Put `claim` in the place of the one with its id: more is known about it now."""
        with self._lock:
            found = self._held.get(claim.claim_id)
            if found:
                self._held[claim.claim_id] = claim, found[1]

    def free_slot(self, claim: Claim) -> None:
        """Free the host's slot: the sandbox is gone, only the outcome is on its way."""
        with self._lock:
            found = self._held.get(claim.claim_id)
        if found:
            found[1].release()

    def remove(self, claim: Claim) -> None:
        """Forget a claim that is settled, with its slot and place; once."""
        with self._lock:
            found = self._held.pop(claim.claim_id, None)
        if found:
            found[1].release()
            self._room.release()

    def job_ids(self) -> list[str]:
        """Return the jobs held."""
        with self._lock:
            return [claim.job_id for claim, _ in self._held.values()]
