"""A request to end a job early, from any thread."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import ERROR_CLASSES
from sandfleet_config.messages import CANCELLED

if TYPE_CHECKING:
    from collections.abc import Iterator

POLL_SECONDS: Final = 0.1
"""How long the thread that polls a signal may outlive its run."""


class CancelSignal(Protocol):
    """Anything that a thread can wait for, such as a ``threading.Event``.

    A `Cancellation` also says why.
    """

    def wait(self, timeout: float | None = None, /) -> bool:
        """Wait for the request to cancel; return whether there is one."""
        ...


class Cancellation:
    """A request to end a job, with its reason; the first reason counts.

    A loop that waits for it uses `open_fd`, which becomes readable at the first `cancel`.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._eventfd: int | None = None
        self.code = ErrorCode.CANCELLED
        self.message = ""

    @property
    def is_set(self) -> bool:
        """Whether the job is to end."""
        return self._event.is_set()

    @property
    def is_withdrawn(self) -> bool:
        """Whether the worker took the job back before anybody cancelled it."""
        return self._event.is_set() and self.code is ErrorCode.WORKER_LOST

    def cancel(self, code: ErrorCode = ErrorCode.CANCELLED, message: str = CANCELLED) -> bool:
        """Ask the job to end as `code`; return whether this request is the first one."""
        with self._lock:
            if self._event.is_set():
                return False
            self.code, self.message = code, message
            self._event.set()
            if self._eventfd is not None:
                os.eventfd_write(self._eventfd, 1)
            return True

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait for a request; return whether there is one."""
        return self._event.wait(timeout_seconds)

    def raise_if_set(self) -> None:
        """Raise the reason as its exception, if there is a request.

        Raises:
            SandboxError: the class of the reason's code, usually ``Cancelled``.
        """
        if self._event.is_set():
            raise ERROR_CLASSES[self.code].of(self.message)

    def open_fd(self) -> int:
        """Return a descriptor that is readable from the first `cancel` on, until `close_fd`."""
        with self._lock:
            if self._eventfd is None:
                self._eventfd = os.eventfd(1 if self._event.is_set() else 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._eventfd

    def close_fd(self) -> None:
        """Close the descriptor of `open_fd`."""
        with self._lock:
            if self._eventfd is not None:
                os.close(self._eventfd)
                self._eventfd = None


@contextmanager
def follow(signal: CancelSignal | None) -> Iterator[Cancellation]:
    """Yield a `Cancellation` that is set when `signal` is; `signal` itself if it is one."""
    if isinstance(signal, Cancellation):
        yield signal
        return
    cancellation = Cancellation()
    if signal is None:
        yield cancellation
        return
    if signal.wait(0):
        cancellation.cancel()
    ended = threading.Event()

    def poll_signal(signal: CancelSignal = signal) -> None:
        """Pass the request on."""
        while not ended.is_set():
            if signal.wait(POLL_SECONDS):
                cancellation.cancel()
                return

    threading.Thread(target=poll_signal, name="cancel", daemon=True).start()
    try:
        yield cancellation
    finally:
        ended.set()
