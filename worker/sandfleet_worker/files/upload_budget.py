"""The memory that the uploads of a worker may take together."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

POLL_SECONDS: Final = 0.1


class UploadBudget:
    """Bytes that uploads hold while they run, in the order in which they came."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes, self._used_bytes = total_bytes, 0
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()
        self.failed_at, self.failure = -math.inf, ""
        """When the last upload failed (`time.monotonic`), and why; never, if it did not."""

    def note_failure(self, why: str) -> None:
        """Note that the store was down for an upload."""
        self.failed_at, self.failure = time.monotonic(), why

    def note_success(self) -> None:
        """Note that the store took an upload."""
        self.failed_at = -math.inf

    @contextlib.contextmanager
    def hold(self, wanted_bytes: int, check: Callable[[], None]) -> Generator[None]:
        """Wait until so many bytes are free, all of them at most, and hold them for the block.

        A small upload does not overtake a large one, which would never start beside many of them.
        `check` is called a few times a second meanwhile; what it raises is raised.
        """
        wanted_bytes = min(wanted_bytes, self._total_bytes)
        self._wait_for(wanted_bytes, check)
        try:
            yield
        finally:
            with self._changed:
                self._used_bytes -= wanted_bytes
                self._changed.notify_all()

    def _wait_for(self, wanted_bytes: int, check: Callable[[], None]) -> None:
        entry = object()
        with self._changed:
            self._waiting.append(entry)
            try:
                while self._waiting[0] is not entry or self._used_bytes + wanted_bytes > self._total_bytes:
                    self._changed.wait(POLL_SECONDS)
                    check()
                self._used_bytes += wanted_bytes
            finally:
                self._waiting.remove(entry)
                self._changed.notify_all()
