"""Of which images sandboxes are booted ahead, and how many."""

from __future__ import annotations

from typing import Any

import pytest
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.warm.boot_limit import BootLimit
from sandfleet_worker.sandbox.warm.demand import Demand, share


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("size", "weights", "places"),
    [
        (4, {}, {}),
        (0, {"a": 1.0}, {}),
        (4, {"a": 1.0}, {"a": 4}),
        (4, {"a": 1.0, "b": 1.0}, {"a": 2, "b": 2}),
        (4, {"a": 9.0, "b": 0.1}, {"a": 3, "b": 1}),
        (2, {"a": 3.0, "b": 2.0, "c": 1.0}, {"a": 1, "b": 1}),
        (8, {"a": 4.0, "b": 2.0, "c": 1.0}, {"a": 5, "b": 2, "c": 1}),
    ],
)
def test_places_are_shared_by_weight_one_at_least(size: int, weights: Any, places: Any) -> None:
    assert share(size, weights) == places


def test_newer_jobs_count_more() -> None:
    clock = Clock()
    demand: Any = Demand(4, 300, clock)
    for _ in range(8):
        demand.note("old")
    clock.now += 120
    for _ in range(2):
        demand.note("new")
    assert demand.targets() == {"new": 3, "old": 1}


def test_a_pin_keeps_what_jobs_have_asked_for() -> None:
    demand: Any = Demand(4, 300, Clock())
    for _ in range(3):
        demand.note("a")
    demand.note("b")
    demand.pin("a")
    assert demand.targets() == {"a": 3, "b": 1}


def test_unused_plans_are_forgotten_unless_they_are_pinned() -> None:
    clock = Clock()
    demand: Any = Demand(4, 300, clock)
    demand.pin("pinned")
    demand.note("used")
    clock.now += 299
    assert set(demand.targets()) == {"pinned", "used"}
    clock.now += 2
    assert demand.targets() == {"pinned": 4}
    demand.note("pinned")
    clock.now += 301
    assert demand.targets() == {"pinned": 4}
    demand.forget("pinned")
    assert demand.targets() == {}


def test_a_boot_slot_is_released_once() -> None:
    boot_limit = BootLimit(1)
    slot = boot_limit.acquire(Cancellation())
    assert boot_limit.try_acquire() is None
    slot.release()
    slot.release()
    assert boot_limit.try_acquire() is not None
    assert boot_limit.try_acquire() is None
