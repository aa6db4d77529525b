"""A worker that is stuck ends, one in an outage does not."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from sandfleet_worker.delivery.watchdog import STALL_SECONDS, Watchdog

LONG = STALL_SECONDS + 1


def new_watchdog(steady: float = 1e6, busy: float | None = None, *, broken: bool = False, idle: float = 0) -> Watchdog:
    lease: Any = SimpleNamespace(steady_seconds=steady)
    busy_since = None if busy is None else time.monotonic() - busy
    claimer: Any = SimpleNamespace(busy_since=busy_since, is_broken=broken)
    watchdog = Watchdog(lease, claimer, leave=lambda _: None)
    watchdog._ticked = time.monotonic() - idle
    return watchdog


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, ""),
        ({"busy": 10, "idle": 10}, ""),
        ({"busy": LONG}, "the claimer"),
        ({"idle": LONG}, "loop"),
        ({"busy": LONG, "idle": LONG, "steady": 0}, ""),
        ({"busy": LONG, "idle": LONG, "steady": 30}, ""),
        ({"broken": True, "steady": 0}, "died"),
    ],
    ids=str,
)
def test_only_a_stall_while_redis_answers_counts(facts: dict[str, Any], said: str) -> None:
    stall = new_watchdog(**facts).find_stall()

    assert said in stall
    assert bool(stall) == bool(said)
