"""How late the event loop is: in Flower it also takes Celery's events, and pages wait for it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

STEP_SECONDS: Final = 0.25
KEPT_SECONDS: Final = 30.0
WARN_SECONDS: Final = 0.5


class LoopLag:
    """Measures by how much a timer comes too late."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, float]] = deque()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether it measures."""
        return self._task is not None

    def start(self) -> None:
        """Measure in the running loop until `stop`."""
        self._task = asyncio.get_running_loop().create_task(self._measure())

    def stop(self) -> None:
        """Measure no more."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _measure(self) -> None:
        while True:
            before = self._clock()
            await asyncio.sleep(STEP_SECONDS)
            self.add(max(0.0, self._clock() - before - STEP_SECONDS))

    def add(self, seconds: float) -> None:
        """Add a measured lag."""
        now = self._clock()
        self._seen.append((now, seconds))
        while self._seen[0][0] < now - KEPT_SECONDS:
            self._seen.popleft()

    @property
    def seconds(self) -> float:
        """The lag that one in ten timers of the last half minute had or exceeded.

        A single hitch is no reason to move the pages.
        """
        lags = sorted(lag for _, lag in self._seen)
        return lags[len(lags) * 9 // 10] if lags else 0.0
