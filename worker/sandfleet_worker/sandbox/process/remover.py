"""Removes sandboxes in a thread of its own, so that nobody has to wait for it, and tries again what will not go.

A sandbox does not go while a process in it hangs in the kernel, or its folder cannot be written. What is still there when the
worker ends is for the sweep of the next worker of this host.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandfleet_worker.system.supervised_thread import SupervisedThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.process.sandbox import Sandbox

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 1.0, 60.0


@dataclass
class _Left:
    """A sandbox that would not go; `due` is the monotonic time of the next try."""

    sandbox: Sandbox
    due: float
    pause: float


class Remover:
    """Destroys what `add` is given, and tries again with back-off; safe for threads. Its thread begins with the first sandbox."""

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        self._lock = threading.Lock()
        self._new: deque[Sandbox] = deque()
        self._left: list[_Left] = []
        self._wake = threading.Event()
        self._thread = SupervisedThread(
            "remover", self._step, on_failure, can_pass=lambda _: True, patience_seconds=math.inf
        )

    def add(self, sandbox: Sandbox) -> None:
        """Destroy `sandbox` soon."""
        with self._lock:
            self._new.append(sandbox)
        self._tell_thread()

    def retry(self, sandbox: Sandbox) -> None:
        """Try again later with `sandbox`, which would not go."""
        self._put_back(_Left(sandbox, time.monotonic() + FIRST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS))
        self._tell_thread()

    def count_left(self) -> int:
        """Return how many sandboxes are not gone yet."""
        with self._lock:
            return len(self._new) + len(self._left)

    def close(self) -> None:
        """End the thread, and try everything once more. Idempotent."""
        self._thread.tell_to_stop()
        self._wake.set()
        self._thread.stop()
        with self._lock:
            sandboxes = [*self._new, *(left.sandbox for left in self._left)]
            self._new.clear()
            self._left.clear()
        left = sum(not sandbox.try_destroy() for sandbox in sandboxes)
        if left:
            text = "%d sandboxes would not go; the next worker that starts on this host removes them"
            log.warning(text, left, extra={"action": "sandboxes_left"})

    def _tell_thread(self) -> None:
        with self._lock:
            self._wake.set()
            if not self._thread.is_started and not self._thread.stopping.is_set():
                try:
                    self._thread.start()
                except RuntimeError as error:  # the host has no thread left: the next call tries again, or `close`
                    log.warning("sandboxes stay for a while: %s", error, extra={"action": "remover_not_started"})

    def _step(self) -> None:
        """Wait for something to remove, and remove it."""
        self._wake.wait(self._find_timeout())
        self._wake.clear()
        while not self._thread.stopping.is_set() and (left := self._take_due()):
            self._remove(left)

    def _find_timeout(self) -> float | None:
        with self._lock:
            if self._new:
                return 0.0
            due = min((left.due for left in self._left), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _take_due(self) -> _Left | None:
        now = time.monotonic()
        with self._lock:
            if self._new:
                return _Left(self._new.popleft(), now, 0.0)
            for left in self._left:
                if left.due <= now:
                    self._left.remove(left)
                    return left
        return None

    def _remove(self, left: _Left) -> None:
        try:
            is_gone = left.sandbox.try_destroy()
        except BaseException:
            self._defer(left)  # never lost, whatever happened
            raise
        if not is_gone:
            self._defer(left)
        elif left.pause:
            name = left.sandbox.paths.folder.name
            log.info("sandbox %s is gone after all", name, extra={"action": "sandbox_removed_late"})

    def _defer(self, left: _Left) -> None:
        left.pause = min(LONGEST_PAUSE_SECONDS, left.pause * 2 or FIRST_PAUSE_SECONDS)
        left.due = time.monotonic() + left.pause
        self._put_back(left)

    def _put_back(self, left: _Left) -> None:
        with self._lock:
            self._left.append(left)
