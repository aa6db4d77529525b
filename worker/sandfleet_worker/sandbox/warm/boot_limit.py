"""Turns to boot a sandbox: a boot is CPU work, and more at once than cores can carry only push each other past their deadline."""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Final

from sandfleet_config.errors import SandboxTimeout

from sandfleet_worker.sandbox.start_hooks import NoHooks

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.start_hooks import StartHooks

BOOTS_PER_CORE = 2
SHORT_WAIT_SECONDS = 0.2
"""A wait that nobody needs to hear of: a turn takes less than that."""
LOOK_SECONDS = 0.05
_NO_HOOKS: Final = NoHooks()


def raise_if_over(cancel: Cancellation, deadline: float | None) -> None:
    """End the wait of a job that shall not start any more.

    Raises:
        SandboxError: the job was ended, or the `time.monotonic` instant `deadline` has come.
    """
    cancel.raise_if_set()
    if deadline is not None and time.monotonic() >= deadline:
        raise SandboxTimeout.of("the caller's deadline passed while the job waited to boot its sandbox")


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

    def wait(self, cancel: Cancellation, deadline: float | None = None, hooks: StartHooks = _NO_HOOKS) -> Turn:
        """Wait for a turn, until the `time.monotonic` instant `deadline` at most; `hooks` hear of a wait that is not short.

        Raises:
            SandboxError: the job was ended while it waited, or the deadline came first.
        """
        if self._turns.acquire(timeout=SHORT_WAIT_SECONDS):
            return Turn(self._turns)
        turn: Turn | None = None
        try:
            with hooks.waiting("its turn to boot"):
                while not self._turns.acquire(timeout=LOOK_SECONDS):
                    raise_if_over(cancel, deadline)
                turn = Turn(self._turns)
        except BaseException:
            if turn is not None:  # it was the job's slot that it waited for then
                turn.end()
            raise
        return turn

    def take(self) -> Turn | None:
        """Return a turn if one is free now."""
        return Turn(self._turns) if self._turns.acquire(blocking=False) else None
