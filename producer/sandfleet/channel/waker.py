"""Wakes a thread or a coroutine that waits for jobs to end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Protocol

CANCEL_POLL_SECONDS = 0.1
"""How long the thread that waits for a cancel may outlive the wait."""


class CancelSignal(Protocol):
    """Anything to wait for in a thread: a ``threading.Event``, or one of ``multiprocessing``."""

    def wait(self, timeout: float | None = None, /) -> bool:
        """Wait for the cancel; return whether it was requested."""
        ...


class Waker:
    """Ends one wait: `wake`, from any thread, ends the current wait or else the next one."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        """End the wait."""
        self._event.set()
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there
                loop.call_soon_threadsafe(self._wake_coroutine)

    def _wake_coroutine(self) -> None:
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    def wait(self, seconds: float) -> None:
        """Wait at most `seconds`; a signal handler may raise through it."""
        self._event.wait(seconds)
        self._event.clear()

    async def wait_async(self, seconds: float) -> None:
        """Do what `wait` does and leave the event loop free."""
        self._loop = asyncio.get_running_loop()
        self._future = self._loop.create_future()
        timer = self._loop.call_later(seconds, self._wake_coroutine)
        try:
            if not self._event.is_set():
                await self._future
        finally:
            timer.cancel()
            self._loop = self._future = None
            self._event.clear()


class CancelRelay:
    """Waits for a waker and for a cancel at once.

    A `CancelSignal` can only be waited for, so a thread waits for it and wakes the waker.
    """

    def __init__(self, waker: Waker, cancel: CancelSignal | None) -> None:
        self._waker, self._cancel = waker, cancel
        self._is_over = False
        self._thread: threading.Thread | None = None

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`; return whether a cancel was requested."""
        self._start()
        self._waker.wait(seconds)
        return self._cancel is not None and self._cancel.wait(0)

    async def wait_async(self, seconds: float) -> bool:
        """Do what `wait` does and leave the event loop free."""
        self._start()
        await self._waker.wait_async(seconds)
        return self._cancel is not None and self._cancel.wait(0)

    def _start(self) -> None:
        if self._cancel is None or (self._thread is not None and self._thread.is_alive()):
            return  # a forked child has no thread
        self._thread = threading.Thread(target=self._relay, args=(self._cancel,), name="sandfleet-cancel", daemon=True)
        self._thread.start()

    def _relay(self, cancel: CancelSignal) -> None:
        while not self._is_over:
            if cancel.wait(CANCEL_POLL_SECONDS):
                self._waker.wake()
                return

    def close(self) -> None:
        """Let the thread end."""
        self._is_over = True
