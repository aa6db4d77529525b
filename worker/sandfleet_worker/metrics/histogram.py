"""Counts of values by size, as Prometheus takes them. The caller holds a lock."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import Final, NamedTuple


class HistogramState(NamedTuple):
    """The cumulative count of each upper bound, the last one ``+Inf``, and the sum of all values."""

    buckets: list[tuple[str, float]]
    total: float


class Histogram:
    """Counts values by the upper bounds `bounds`, which ascend; a bound belongs to its bucket."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def read(self) -> HistogramState:
        """Return what was counted so far."""
        names = [*map(_name_bound, self._bounds), "+Inf"]
        return HistogramState(list(zip(names, accumulate(self._counts), strict=True)), self._sum)


def _name_bound(bound: float) -> str:
    return str(float(bound))


QUEUE_BOUNDS: Final = (0.01, 0.05, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0, 3600.0, 14400.0, 86400.0)
RUN_BOUNDS: Final = (0.01, 0.05, 0.25, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0)
STEP_BOUNDS: Final = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 30.0)
MEMORY_BOUNDS: Final = tuple(float(1 << power) for power in range(24, 37, 2))
"""16 MiB to 64 GiB."""
