"""Ends a worker that no longer works: one that is stuck must not look alive."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.delivery.claims import Claimer
    from sandfleet_worker.delivery.leases import Lease

log = logging.getLogger(__name__)

STALL_SECONDS = 60.0
LOOK_SECONDS = 2.0
EXIT_STALLED = 70
"""sysexits(3), EX_SOFTWARE."""


class Watchdog:
    """Watches the claimer and Celery's loop, and leaves with `EXIT_STALLED` when one makes no progress while Redis answers."""

    def __init__(self, lease: Lease, claimer: Claimer, leave: Callable[[int], None] = os._exit) -> None:
        self._lease, self._claimer, self._leave = lease, claimer, leave
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._ticked = time.monotonic()

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more: the worker ends by itself."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def tick(self) -> None:
        """Note that Celery's loop goes round."""
        self._ticked = time.monotonic()

    def find_stall(self) -> str:
        """Say what is stuck, or nothing."""
        now = time.monotonic()
        if self._claimer.is_broken:
            return "the claimer has died"
        # Everybody gets the time to come back after an outage.
        if self._lease.steady_seconds < STALL_SECONDS:
            return ""
        busy_since = self._claimer.busy_since
        if busy_since is not None and now - busy_since > STALL_SECONDS:
            return f"the claimer has made no progress for {STALL_SECONDS:g} s"
        if now - self._ticked > STALL_SECONDS:
            return f"Celery's loop has made no progress for {STALL_SECONDS:g} s"
        return ""

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            stall = self.find_stall()
            if stall and not self._stop.is_set():
                log.critical("%s: the worker ends, its jobs run elsewhere", stall, extra={"action": "worker_stalled"})
                # Its sandboxes die with it, by the kernel; its lease ends, and another worker takes over.
                self._leave(EXIT_STALLED)
