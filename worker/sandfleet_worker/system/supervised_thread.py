"""Threads that cannot end unseen.

Each recovers from errors that can pass, and otherwise ends the worker for its supervisor. Works
without Celery and Redis: threads of `sandfleet_worker.sandbox` use it, too.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from typing import TYPE_CHECKING

from sandfleet_worker.system.bounded_log import log_in_time

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

RESOURCE_ERRNOS = frozenset({
    errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN,
})  # fmt: skip
"""Descriptors, disk, memory or processes of the host have run out, or a disk is read-only.

An operator can end it.
"""
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 0.05, 1.0
RESOURCE_TIMEOUT_SECONDS = 300.0
"""How long one resource of the host may be missing before the worker ends."""


def is_resource_error(error: BaseException) -> bool:
    """Whether the host lacks descriptors, disk, memory or threads: the call may succeed later."""
    if isinstance(error, OSError):
        return error.errno in RESOURCE_ERRNOS
    # CPython raises this RuntimeError where pthread_create(3) fails: there is no class of its own.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "can't start new thread" in str(error)
    )


class Backoff:
    """The pauses of a series of failures.

    Logs the first failure of a series and its end, once each. `name` names the work: "claims",
    "beats"; the log's actions are ``<name>_interrupted`` and ``<name>_resumed``. `subject` says it
    to people where the name does not: "the end of job x".
    """

    def __init__(
        self,
        name: str,
        first_seconds: float = FIRST_BACKOFF_SECONDS,
        longest_seconds: float = MAX_BACKOFF_SECONDS,
        subject: str = "",
    ) -> None:
        self._name, self._subject = name, subject or name
        self._first, self._longest = first_seconds, longest_seconds
        self._seconds = 0.0
        self._since: float | None = None

    @property
    def failing_seconds(self) -> float:
        """Seconds since the first failure of the series; 0 without one."""
        return 0.0 if self._since is None else time.monotonic() - self._since

    def note_failure(self, error: BaseException) -> float:
        """Count a failure; return the seconds to pause before the next try."""
        if self._since is None:
            self._since = time.monotonic()
            text = "%s: interrupted, and tried again until it works: %s: %s"
            action = f"{self._name}_interrupted"
            log.warning(text, self._subject, type(error).__name__, error, extra={"action": action})
        self._seconds = min(self._longest, self._seconds * 2 or self._first)
        return self._seconds

    def note_success(self) -> None:
        """End the series."""
        if self._since is not None:
            action = f"{self._name}_resumed"
            log.info("%s: resumed after %.1f s", self._subject, self.failing_seconds, extra={"action": action})
        self._since, self._seconds = None, 0.0


class SupervisedThread:
    """Calls `step` again and again in a thread of its own, until `stop`.

    `step` returns how many seconds to pause before its next call; None is no pause. It must return
    from time to time, and has to try its work each time: the return ends a series of failures.

    An error of `step` can pass if it is a resource error of the host, or if `can_pass` says so. It
    is logged once, and `step` is called again with back-off. Resource errors may last
    `timeout_seconds`; those of `can_pass` (an outage of Redis) have no limit. Every other error,
    and a series that lasts too long, is given to `on_failure` as a sentence, in this thread, and
    ends the thread. `on_failure` ends the worker.
    """

    def __init__(
        self,
        name: str,
        step: Callable[[], float | None],
        on_failure: Callable[[str], None],
        *,
        can_pass: Callable[[Exception], bool] = lambda _: False,
        timeout_seconds: float = RESOURCE_TIMEOUT_SECONDS,
        backoff: Backoff | None = None,
    ) -> None:
        self._name, self._step, self._on_failure = name, step, on_failure
        self._can_pass, self._timeout_seconds = can_pass, timeout_seconds
        self._backoff = backoff or Backoff(name)
        self._missing_since: float | None = None
        """Since when a resource of the host is missing; an outage before it does not count."""
        self.stopping = threading.Event()
        """Set by `stop`; a step may wait for it."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def is_started(self) -> bool:
        """Whether the thread has ever run."""
        return self._thread.ident is not None

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs now."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin; raises ``RuntimeError`` where the host has no thread left."""
        self._thread.start()

    def tell_to_stop(self) -> None:
        """Call `step` no more; the call under way goes on."""
        self.stopping.set()

    def stop(self) -> None:
        """Call `step` no more, and wait for the call under way.

        Idempotent; called by the thread itself it does not wait.
        """
        self.stopping.set()
        if self.is_started and self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self.stopping.is_set():
                pause = self._call_step()
                if pause and self.stopping.wait(pause):
                    return
        except BaseException as error:  # noqa: BLE001  the edge of the thread: told, and ends the worker
            try:
                text = "the thread %s has failed"
                log_in_time(log, logging.CRITICAL, text, self._name, action="thread_failed", error=error)
            finally:
                # Only the kind: the text of an unknown error may hold anything.
                self._on_failure(f"the thread {self._name} has failed with {type(error).__name__}")

    def _call_step(self) -> float | None:
        """Call `step` once; return how long to pause.

        Raises what cannot pass, or has lasted too long.
        """
        try:
            pause = self._step()
        except Exception as error:
            is_passing = self._is_resource_awaited() if is_resource_error(error) else self._can_pass(error)
            if not is_passing:
                raise
            return self._backoff.note_failure(error)
        self._backoff.note_success()
        self._missing_since = None
        return pause

    def _is_resource_awaited(self) -> bool:
        """Note that a host resource is missing; return whether it may still come back in time."""
        now = time.monotonic()
        self._missing_since = now if self._missing_since is None else self._missing_since
        return now - self._missing_since <= self._timeout_seconds
