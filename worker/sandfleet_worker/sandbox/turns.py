"""Turns to boot a sandbox: a boot is CPU work, and more at once than cores can carry only push each other past their deadline."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING

from sandfleet_config.errors import SandboxTimeout

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.cancellation import Cancellation

BOOTS_PER_CORE = 2


class Turn:
    """One turn; it is over once `end` is called, however often."""

    def __init__(self, turns: threading.Semaphore) -> None:
        self._turns: threading.Semaphore | None = turns
        self._lock = threading.Lock()

    def end(self) -> None:
        """Let another boot begin."""
        with self._lock:
            turns, self._turns = self._turns, None
        if turns is not None:
            turns.release()


class BootTurns:
    """The turns of one worker; safe for threads."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit or BOOTS_PER_CORE * (os.cpu_count() or 1)
        self._turns = threading.BoundedSemaphore(self.limit)

    def wait(self, cancel: Cancellation, deadline: float | None = None) -> Turn:
        """Wait for a turn, until the `time.monotonic` instant `deadline` at most.

        Raises:
            SandboxError: the job was ended while it waited, or the deadline came first.
        """
        while not self._turns.acquire(timeout=0.05):
            cancel.raise_if_set()
            if deadline is not None and time.monotonic() >= deadline:
                raise SandboxTimeout.of("the caller's deadline passed while the job waited to boot its sandbox")
        return Turn(self._turns)

    def take(self) -> Turn | None:
        """Return a turn if one is free now."""
        return Turn(self._turns) if self._turns.acquire(blocking=False) else None
