"""Ends a worker that is stuck, so that its jobs run elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from sandfleet_worker.delivery.worker_exit import EXIT_STALLED
from sandfleet_worker.system.bounded_log import is_log_blocked, log_in_time
from sandfleet_worker.system.supervised_thread import SupervisedThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_worker.delivery.claimer import Claimer
    from sandfleet_worker.delivery.held_claims import HeldClaims
    from sandfleet_worker.delivery.lease import Lease

__all__ = ["EXIT_STALLED", "Watchdog"]
log = logging.getLogger(__name__)

STALL_SECONDS = 60.0
POLL_SECONDS = 2.0


class Watchdog:
    """Calls `abandon` when the lease, the log, the claimer, Celery's loop or a job hangs.

    The last three have to go on only while Redis answers. Before it ends a worker for a job that
    hangs, the other jobs get `drain_seconds` to end. Threads that fail report that themselves
    (`SupervisedThread`); `on_failure` is called if this one fails.
    """

    def __init__(
        self,
        lease: Lease,
        claimer: Claimer,
        held_claims: HeldClaims,
        drain_seconds: float,
        *,
        abandon: Callable[[str], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._lease, self._claimer, self._held_claims, self._abandon = lease, claimer, held_claims, abandon
        self._drain_seconds = drain_seconds
        self._thread = SupervisedThread("watchdog", self._step, on_failure)
        self._ticked = time.monotonic()
        self._seen_tries, self._silent_steps, self._blocked_steps = -1, 0, 0

    def start(self) -> None:
        """Begin to watch."""
        self.tick()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more: the worker ends by itself."""
        self._thread.stop()

    def tick(self) -> None:
        """Note that Celery's loop has made progress."""
        self._ticked = time.monotonic()

    @property
    def _is_redis_steady(self) -> bool:
        """Whether Redis has answered for so long that each part has recovered from an outage."""
        return self._lease.steady_seconds >= STALL_SECONDS

    def find_stall(self) -> str:
        """Return a text about the part that is stuck; empty where none is."""
        now = time.monotonic()
        if not self._is_redis_steady:
            return ""
        if now - self._claimer.progressed > STALL_SECONDS:
            return f"the claimer has made no progress for {STALL_SECONDS:g} s"
        if now - self._ticked > STALL_SECONDS:
            return f"Celery's loop has made no progress for {STALL_SECONDS:g} s"
        return ""

    def find_overdue(self) -> list[str]:
        """Return the jobs that hang."""
        return self._held_claims.overdue_job_ids() if self._is_redis_steady else []

    def find_silence(self) -> str:
        """Return a text about a lease that begins no beat, or a log that takes no line; else empty.

        Called once a step. Steps are counted, not seconds: after a pause of the whole process, as by
        SIGSTOP, each thread is late, and no thread hangs.
        """
        tries = self._lease.tries
        self._silent_steps = self._silent_steps + 1 if tries == self._seen_tries else 0
        self._seen_tries = tries
        longest = STALL_SECONDS + self._lease.seconds
        if not self._lease.is_lost and self._silent_steps * POLL_SECONDS > longest:
            return f"the lease has made no progress for {longest:g} s"
        self._blocked_steps = self._blocked_steps + 1 if is_log_blocked(POLL_SECONDS) else 0
        if self._blocked_steps * 2 * POLL_SECONDS > STALL_SECONDS:
            return f"the log has taken no line for {STALL_SECONDS:g} s: nobody reads stderr"
        return ""

    def _step(self) -> float:
        if stall := self.find_silence():
            self._give_up(stall)
            return POLL_SECONDS
        if overdue := self.find_overdue():
            overdue = self._wait_for_others(overdue)
        stall = f"{_name(overdue)} should have ended long ago" if overdue else self.find_stall()
        if stall:
            self._give_up(stall)
        return POLL_SECONDS

    def _give_up(self, stall: str) -> None:
        if not self._thread.stopping.is_set():
            self._abandon(stall)
            self._thread.tell_to_stop()

    def _wait_for_others(self, overdue: Sequence[str]) -> list[str]:
        """Let the other jobs end, and return those that still hang then."""
        text = "%s should have ended long ago: no job is claimed, the others have %g s to end"
        log_in_time(log, logging.ERROR, text, _name(overdue), self._drain_seconds, action="job_overdue")
        self._claimer.pause()
        deadline = time.monotonic() + self._drain_seconds
        while time.monotonic() < deadline and not self._thread.stopping.wait(0.05):
            hanging = self._held_claims.overdue_job_ids()
            if not hanging or not set(self._held_claims.job_ids()) - set(hanging):
                break
        hanging = self._held_claims.overdue_job_ids()
        if not hanging:
            text = "%s ended after all: jobs are claimed again"
            log_in_time(log, logging.WARNING, text, _name(overdue), action="job_overdue_ended")
            self._claimer.resume()
        return hanging


def _name(job_ids: Sequence[str]) -> str:
    return f"job{'s' if len(job_ids) > 1 else ''} {', '.join(job_ids)}"
