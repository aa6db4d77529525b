"""Removes sandboxes in a thread of its own, and tries failed removals again. No job waits for it.

A removal fails while a process of the sandbox hangs in the kernel, or while its folder cannot be
written. The next worker of this host sweeps the sandboxes that are still there when this worker
ends.
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
class _Pending:
    """A sandbox whose removal failed.

    `due` is the monotonic time of the next try, `pause` the back-off in seconds.
    """

    sandbox: Sandbox
    due: float
    pause: float


class Remover:
    """Destroys sandboxes, and tries again with back-off; safe for threads.

    Its thread starts with the first sandbox.
    """

    def __init__(self, on_failure: Callable[[str], None]) -> None:
        self._lock = threading.Lock()
        self._new: deque[Sandbox] = deque()
        self._pending: list[_Pending] = []
        self._wake = threading.Event()
        self._thread = SupervisedThread(
            "remover", self._step, on_failure, can_pass=lambda _: True, timeout_seconds=math.inf
        )

    def add(self, sandbox: Sandbox) -> None:
        """Destroy `sandbox` soon."""
        with self._lock:
            self._new.append(sandbox)
        self._notify_thread()

    def retry(self, sandbox: Sandbox) -> None:
        """Destroy `sandbox` later: its removal has just failed."""
        self._put_back(_Pending(sandbox, time.monotonic() + FIRST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS))
        self._notify_thread()

    def count_pending(self) -> int:
        """Return how many sandboxes are not gone yet."""
        with self._lock:
            return len(self._new) + len(self._pending)

    def close(self) -> None:
        """End the thread, and try everything once more. Idempotent."""
        self._thread.tell_to_stop()
        self._wake.set()
        self._thread.stop()
        with self._lock:
            sandboxes = [*self._new, *(pending.sandbox for pending in self._pending)]
            self._new.clear()
            self._pending.clear()
        failed = sum(not sandbox.try_destroy() for sandbox in sandboxes)
        if failed:
            text = "%d sandboxes would not go; the next worker that starts on this host removes them"
            log.warning(text, failed, extra={"action": "sandboxes_left"})

    def _notify_thread(self) -> None:
        with self._lock:
            self._wake.set()
            if not self._thread.is_started and not self._thread.stopping.is_set():
                try:
                    self._thread.start()
                except RuntimeError as error:  # the host has no thread left: the next call tries again, or `close`
                    log.warning("sandboxes stay for a while: %s", error, extra={"action": "remover_not_started"})

    def _step(self) -> None:
        """Wait for a sandbox to remove, and remove it."""
        self._wake.wait(self._find_timeout())
        self._wake.clear()
        while not self._thread.stopping.is_set() and (pending := self._take_due()):
            self._remove(pending)

    def _find_timeout(self) -> float | None:
        with self._lock:
            if self._new:
                return 0.0
            due = min((pending.due for pending in self._pending), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _take_due(self) -> _Pending | None:
        now = time.monotonic()
        with self._lock:
            if self._new:
                return _Pending(self._new.popleft(), now, 0.0)
            for pending in self._pending:
                if pending.due <= now:
                    self._pending.remove(pending)
                    return pending
        return None

    def _remove(self, pending: _Pending) -> None:
        try:
            is_gone = pending.sandbox.try_destroy()
        except BaseException:
            self._defer(pending)  # never lost, whatever happened
            raise
        if not is_gone:
            self._defer(pending)
        elif pending.pause:
            name = pending.sandbox.paths.folder.name
            log.info("sandbox %s is gone after all", name, extra={"action": "sandbox_removed_late"})

    def _defer(self, pending: _Pending) -> None:
        pending.pause = min(LONGEST_PAUSE_SECONDS, pending.pause * 2 or FIRST_PAUSE_SECONDS)
        pending.due = time.monotonic() + pending.pause
        self._put_back(pending)

    def _put_back(self, pending: _Pending) -> None:
        with self._lock:
            self._pending.append(pending)
