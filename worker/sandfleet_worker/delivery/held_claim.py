"""One claim that this worker runs."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.host_slots import Slot


@dataclass
class HeldClaim:
    """One claim. `has_capacity`: it counts within the worker's `concurrency`.

    `latest_end` is monotonic; None where it is not known yet, or the sandbox is gone.
    """

    claim: Claim
    slot: Slot | None
    latest_end: float | None = None
    within_seconds: float | None = None
    memory_bytes: int = 0
    is_running: bool = True
    may_give_back: bool = False
    may_give_back_capacity: bool = False
    has_capacity: bool = True
    is_returning: bool = False
    started: float = field(default_factory=time.monotonic)

    def is_suspect(self, margin_seconds: float) -> bool:
        """Whether the job may still be about to kill this worker.

        Also true if it was so less than `margin_seconds` ago.
        """
        seconds = self.claim.suspect_seconds
        if seconds is None or not self.is_running:
            return False
        return self.claim.is_waiting or time.monotonic() < self.started + seconds + margin_seconds

    def take_slot(self) -> Slot | None:
        """Take the slot out, for the caller to free."""
        slot, self.slot = self.slot, None
        return slot
