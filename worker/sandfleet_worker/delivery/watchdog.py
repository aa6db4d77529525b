"""Ends a worker that no longer works: one that is stuck must not look alive."""

from __future__ import annotations

import logging
import os
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_worker.delivery.claims import Claimer
    from sandfleet_worker.delivery.held import Held
    from sandfleet_worker.delivery.leases import Lease

log = logging.getLogger(__name__)

STALL_SECONDS = 60.0
LOOK_SECONDS = 2.0
EXIT_STALLED = 70
"""sysexits(3), EX_SOFTWARE."""


class Watchdog:
    """Watches the claimer, Celery's loop and the jobs held, and leaves with `EXIT_STALLED` when one hangs while Redis answers.

    The others of a job that hangs get `drain_seconds`: it is one program's doing, perhaps, and they have done nothing.
    """

    def __init__(
        self,
        lease: Lease,
        claimer: Claimer,
        held: Held,
        drain_seconds: float,
        leave: Callable[[int], None] = os._exit,
    ) -> None:
        self._lease, self._claimer, self._held, self._leave = lease, claimer, held, leave
        self._drain_seconds = drain_seconds
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

    @property
    def _is_redis_steady(self) -> bool:
        """Whether everybody had the time to come back after an outage."""
        return self._lease.steady_seconds >= STALL_SECONDS

    def find_stall(self) -> str:
        """Say what is stuck, or nothing."""
        now = time.monotonic()
        if self._claimer.is_broken:
            return "the claimer has died"
        if not self._is_redis_steady:
            return ""
        if now - self._claimer.progressed > STALL_SECONDS:
            return f"the claimer has made no progress for {STALL_SECONDS:g} s"
        if now - self._ticked > STALL_SECONDS:
            return f"Celery's loop has made no progress for {STALL_SECONDS:g} s"
        return ""

    def find_overdue(self) -> list[str]:
        """Return the jobs that hang."""
        return self._held.overdue_job_ids() if self._is_redis_steady else []

    def abandon(self, why: str) -> None:
        """Leave at once: sandboxes die with the process, by the kernel; its lease ends, and another worker takes over."""
        log.critical("%s: the worker ends, its jobs run elsewhere", why, extra={"action": "worker_stalled"})
        self._leave(EXIT_STALLED)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            overdue = self.find_overdue()
            if overdue:
                self._wait_for_others(overdue)
            stall = f"{_name(overdue)} should have ended long ago" if overdue else self.find_stall()
            if stall and not self._stop.is_set():
                self.abandon(stall)
                return

    def _wait_for_others(self, overdue: Sequence[str]) -> None:
        text = "%s should have ended long ago: no job is claimed any more, the others have %g s to end"
        log.error(text, _name(overdue), self._drain_seconds, extra={"action": "job_overdue"})
        self._claimer.end()
        deadline = time.monotonic() + self._drain_seconds
        while set(self._held.job_ids()) - set(overdue) and time.monotonic() < deadline and not self._stop.wait(0.05):
            pass


def _name(job_ids: Sequence[str]) -> str:
    return f"job{'s' if len(job_ids) > 1 else ''} {', '.join(job_ids)}"
