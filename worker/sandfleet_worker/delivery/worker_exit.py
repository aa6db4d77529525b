"""Ends a worker when a part of it asks for it: in order where Celery can, else by a deadline."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from celery.worker import state

from sandfleet_worker.system.bounded_log import log_in_time

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

EXIT_STALLED = 70
"""sysexits(3), EX_SOFTWARE: a part hangs or has failed."""
EXIT_LOST = 75
"""sysexits(3), EX_TEMPFAIL: the lease is lost; the supervisor starts the worker again."""
RELEASE_SECONDS = 15.0
"""How long sandboxes may take to die, and their claims to be settled, when the worker stops."""
MARGIN_SECONDS = 15.0


class WorkerExit:
    """Ends this process, once, with an exit code for its supervisor. Safe for threads.

    Celery is asked by flags, which its loop reads each second; it then stops as after a signal.
    Where its loop hangs, or has not begun because Redis is away, a deadline ends the process by
    `leave`. The kernel kills the sandboxes with the process, and other workers take its jobs over
    when its lease ends.
    """

    def __init__(self, drain_seconds: float, leave: Callable[[int], None] = os._exit) -> None:
        self._drain_seconds, self._leave = drain_seconds, leave
        self._lock = threading.Lock()
        self.code: int | None = None
        """Exit code that a part of the worker has asked for; None if none has."""

    def drain(self, why: str, code: int = EXIT_STALLED) -> None:
        """End in order: claim no more, let running jobs end, and give the rest back.

        Jobs have ``drain_seconds`` to end.
        """
        self._begin("should_stop", why, code, self._drain_seconds + RELEASE_SECONDS + MARGIN_SECONDS)

    def withdraw(self, why: str, code: int) -> None:
        """End quickly: kill what runs, and give back what is still ours."""
        self._begin("should_terminate", why, code, RELEASE_SECONDS + MARGIN_SECONDS)

    def abandon(self, why: str, code: int = EXIT_STALLED) -> None:
        """End at once."""
        log_in_time(log, logging.CRITICAL, "%s: the worker ends, its jobs run elsewhere", why, action="worker_stalled")
        self._leave(code)

    def _begin(self, flag: str, why: str, code: int, within_seconds: float) -> None:
        with self._lock:
            is_first = self.code is None
            self.code = code if is_first else self.code
        if not is_first and flag == "should_stop":
            return
        flags: Any = state
        setattr(flags, flag, code)
        log_in_time(log, logging.CRITICAL, "%s: the worker ends", why, action="worker_ends")
        try:
            timer = threading.Timer(within_seconds, self.abandon, ("it could not end in order", code))
            timer.daemon = True
            timer.start()
        except RuntimeError:  # no thread is left
            self.abandon(why, code)
