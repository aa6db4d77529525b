"""Percentiles and ratios. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

NOISY_SPREAD = 0.5
"""Noisy: the middle 80 % of the bare runs spread over more than this share of their median."""


@dataclass(frozen=True)
class Summary:
    """Some figures in one line; in the unit of the figures."""

    count: int
    p50: float
    p95: float
    p99: float


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0..1) of `values` lie, interpolated.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values, no percentile")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summarize(values: Sequence[float]) -> Summary:
    """Return count and percentiles of `values`."""
    p50, p95, p99 = (percentile(values, share) for share in (0.5, 0.95, 0.99))
    return Summary(len(values), p50, p95, p99)


def median_ratio(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the median of value / base, by round: a round's disturbances hit both of them.

    Raises:
        ValueError: the two are not of the same rounds.
    """
    return statistics.median(value / other for value, other in zip(values, base, strict=True))


def spread(values: Sequence[float]) -> float:
    """Return how far the middle 80 % of `values` lie apart, as a share of the median."""
    return (percentile(values, 0.9) - percentile(values, 0.1)) / percentile(values, 0.5)
