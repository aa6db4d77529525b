"""The limit of sandboxes that boot at once.

A boot is CPU work. More boots than the cores can carry only push each other past their deadline.
"""

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
"""A wait that `StartHooks.waiting` is not told of: a boot takes less than that."""
POLL_SECONDS = 0.05
_NO_HOOKS: Final = NoHooks()


def raise_if_over(cancel: Cancellation, deadline: float | None) -> None:
    """End the wait of a job that must not start any more.

    Raises:
        SandboxError: the job was ended, or the `time.monotonic` instant `deadline` has come.
    """
    cancel.raise_if_set()
    if deadline is not None and time.monotonic() >= deadline:
        raise SandboxTimeout.of("the caller's deadline passed while the job waited to boot its sandbox")


class BootSlot:
    """The right to boot one sandbox, until `release`."""

    def __init__(self, slots: threading.Semaphore) -> None:
        self._slots: threading.Semaphore | None = slots
        self._lock = threading.Lock()

    def release(self) -> None:
        """Let another boot begin. Idempotent."""
        with self._lock:
            slots, self._slots = self._slots, None
        if slots is not None:
            slots.release()


class BootLimit:
    """Gives out the boot slots of one worker; safe for threads."""

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit or BOOTS_PER_CORE * (os.cpu_count() or 1)
        self._slots = threading.BoundedSemaphore(self.limit)

    def acquire(self, cancel: Cancellation, deadline: float | None = None, hooks: StartHooks = _NO_HOOKS) -> BootSlot:
        """Wait for a boot slot, until the `time.monotonic` instant `deadline` at most.

        Tell `hooks` of a long wait.

        Raises:
            SandboxError: the job was ended while it waited, or the deadline came first.
        """
        if self._slots.acquire(timeout=SHORT_WAIT_SECONDS):
            return BootSlot(self._slots)
        slot: BootSlot | None = None
        try:
            with hooks.waiting("its turn to boot"):
                while not self._slots.acquire(timeout=POLL_SECONDS):
                    raise_if_over(cancel, deadline)
                slot = BootSlot(self._slots)
        except BaseException:
            if slot is not None:  # leaving `waiting` has failed: the job did not get its slot of the host again
                slot.release()
            raise
        return slot

    def try_acquire(self) -> BootSlot | None:
        """Return a boot slot if one is free now."""
        return BootSlot(self._slots) if self._slots.acquire(blocking=False) else None
