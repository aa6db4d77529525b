"""A request to end a job early, from any thread."""

from __future__ import annotations

import os
import threading

from sandfleet_config.errors import ERROR_CLASSES, ErrorCode
from sandfleet_config.words import CANCELLED


class Cancellation:
    """Says once, to whoever waits, that the job shall end and why; the first reason stands.

    The waiting loop watches `fileno`, which becomes readable with the first `cancel`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._eventfd: int | None = None
        self.code = ErrorCode.CANCELLED
        self.message = ""

    @property
    def is_set(self) -> bool:
        """Whether somebody has asked."""
        return self._event.is_set()

    def cancel(self, code: ErrorCode = ErrorCode.CANCELLED, message: str = CANCELLED) -> bool:
        """Ask the job to end as `code`; return whether this call was the first to ask."""
        with self._lock:
            if self._event.is_set():
                return False
            self.code, self.message = code, message
            self._event.set()
            if self._eventfd is not None:
                os.eventfd_write(self._eventfd, 1)
            return True

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for somebody to ask; return whether one did."""
        return self._event.wait(timeout_seconds)

    def raise_if_set(self) -> None:
        """Raise the reason as its exception, if there is one.

        Raises:
            SandboxError: the class of the reason's code, usually ``Cancelled``.
        """
        if self._event.is_set():
            raise ERROR_CLASSES[self.code].of(self.message)

    def open_fd(self) -> int:
        """Return a file descriptor that is readable from the first `cancel` on; one at a time, ended by `close_fd`."""
        with self._lock:
            if self._eventfd is None:
                self._eventfd = os.eventfd(1 if self._event.is_set() else 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._eventfd

    def close_fd(self) -> None:
        """Close what `open_fd` gave."""
        with self._lock:
            if self._eventfd is not None:
                os.close(self._eventfd)
                self._eventfd = None
