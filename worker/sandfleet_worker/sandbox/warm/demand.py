"""Which spares to keep, how many of each, and whether the host has cores and memory for them."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandfleet_worker.sandbox.process.plan import Plan

HALF_LIFE_SECONDS = 30.0
"""A job that long ago counts half as much as one of now, when images compete for places."""

SPARE_CORES = 0.5
STAT_BYTES = 256
"""More than the first line of proc_stat(5) takes up to its sixth word."""
MIN_AVAILABLE_SHARE = 0.1
"""No spare is booted while less of the host's memory is available: running jobs come first."""


@dataclass
class _Use:
    """How much jobs have used a plan: `weight` as of `at`, monotonic seconds."""

    weight: float
    at: float
    is_pinned: bool = False

    def weigh(self, now: float) -> float:
        """Return the weight of now; that of a pinned plan is always above zero."""
        faded = self.weight * math.exp2((self.at - now) / HALF_LIFE_SECONDS)
        return max(faded, 1e-3) if self.is_pinned else faded


class Demand:
    """The plans that jobs have asked for, newer jobs counting more; `size` places are shared out.

    Not safe for threads.
    """

    def __init__(self, size: int, idle_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.size, self._idle_seconds, self._clock = size, idle_seconds, clock
        self._uses: dict[Plan, _Use] = {}

    def note(self, plan: Plan) -> None:
        """Count a job that `plan` serves."""
        now = self._clock()
        known = self._uses.get(plan)
        if known is None:
            self._uses[plan] = _Use(1.0, now)
        else:
            known.weight, known.at = known.weigh(now) + 1.0, now

    def pin(self, plan: Plan) -> None:
        """Want spares of `plan` whether or not jobs ask for them."""
        self._uses.setdefault(plan, _Use(0.0, self._clock())).is_pinned = True

    def forget(self, plan: Plan) -> None:
        """Want no more spares of `plan`, until a job asks for one or it is pinned again."""
        self._uses.pop(plan, None)

    def plans(self) -> list[Plan]:
        """Return all plans of which spares are wanted."""
        return list(self._uses)

    def targets(self) -> dict[Plan, int]:
        """Return how many spares of each plan to keep.

        Forget plans that no job has asked for in `idle_seconds`.
        """
        now = self._clock()
        for plan in [
            plan for plan, use in self._uses.items() if not use.is_pinned and now - use.at > self._idle_seconds
        ]:
            del self._uses[plan]
        return share(self.size, {plan: use.weigh(now) for plan, use in self._uses.items()})


def share(size: int, weights: Mapping[Plan, float]) -> dict[Plan, int]:
    """Split `size` places by weight (D'Hondt), at least one for each of the heaviest plans.

    Pure.
    """
    chosen = sorted(weights, key=lambda plan: weights[plan], reverse=True)[:size]
    places = dict.fromkeys(chosen, 1)
    for _ in range(size - len(chosen) if chosen else 0):
        places[max(chosen, key=lambda plan: weights[plan] / places[plan])] += 1
    return places


class HostLoad:
    """Whether the host has idle cores and free memory. Not safe for threads."""

    def __init__(self) -> None:
        self._ticks = os.sysconf("SC_CLK_TCK")
        self._last = self._read()

    def has_idle_cores(self) -> bool:
        """Whether half a core or more was idle since the last call."""
        idle, at = self._read()
        last_idle, last_at = self._last
        self._last = idle, at
        return idle - last_idle >= SPARE_CORES * (at - last_at)

    def has_free_memory(self) -> bool:
        """Whether enough of the host's memory is available."""
        memory = psutil.virtual_memory()
        return bool(memory.available >= MIN_AVAILABLE_SHARE * memory.total)

    def _read(self) -> tuple[float, float]:
        """Return the idle core-seconds since boot (proc_stat(5), fields 4 and 5), and the time."""
        # Read 10 to 20 times a second: as a text file it takes twelve system calls instead of
        # three.
        file = os.open("/proc/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            words = os.read(file, STAT_BYTES).split(maxsplit=6)
        finally:
            os.close(file)
        return (int(words[4]) + int(words[5])) / self._ticks, time.monotonic()
