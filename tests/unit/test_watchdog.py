"""A worker that is stuck ends, one in an outage does not."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from sandfleet_worker.delivery.held import Held
from sandfleet_worker.delivery.ledger import Claim, Flag
from sandfleet_worker.delivery.watchdog import STALL_SECONDS, Watchdog

LONG = STALL_SECONDS + 1


def new_watchdog(
    steady: float = 1e6, quiet: float = 0, *, broken: bool = False, idle: float = 0, overdue: tuple[str, ...] = ()
) -> Watchdog:
    lease: Any = SimpleNamespace(steady_seconds=steady)
    claimer: Any = SimpleNamespace(progressed=time.monotonic() - quiet, is_broken=broken)
    held: Any = SimpleNamespace(overdue_job_ids=lambda: list(overdue))
    watchdog = Watchdog(lease, claimer, held, 0.0, leave=lambda _: None)
    watchdog._ticked = time.monotonic() - idle
    return watchdog


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, ""),
        ({"quiet": 10, "idle": 10}, ""),
        ({"quiet": LONG}, "the claimer"),
        ({"idle": LONG}, "loop"),
        ({"quiet": LONG, "idle": LONG, "steady": 0}, ""),
        ({"quiet": LONG, "idle": LONG, "steady": 30}, ""),
        ({"broken": True, "steady": 0}, "died"),
    ],
    ids=str,
)
def test_only_a_stall_while_redis_answers_counts(facts: dict[str, Any], said: str) -> None:
    stall = new_watchdog(**facts).find_stall()

    assert said in stall
    assert bool(stall) == bool(said)


@pytest.mark.parametrize(("steady", "found"), [(1e6, ["a"]), (0, [])])
def test_a_job_that_hangs_counts_while_redis_answers(steady: float, found: list[str]) -> None:
    assert new_watchdog(steady, overdue=("a",)).find_overdue() == found


def test_a_job_is_overdue_only_while_its_sandbox_is_not_gone() -> None:
    held, slot = Held(2), SimpleNamespace(release=lambda: None)
    late, gone = (Claim(name, name, Flag.START, b"") for name in ("late", "gone"))
    for claim in (late, gone):
        assert held.wait_room(0)
        held.add(claim, slot)  # type: ignore[arg-type]
    assert held.overdue_job_ids() == []

    for claim in (late, gone):
        held.expect_end(claim, -1)
    held.free_slot(gone)

    assert held.overdue_job_ids() == held.running_job_ids() == ["late"]
    assert held.job_ids() == ["late", "gone"]
    held.expect_end(late, 60)
    assert held.overdue_job_ids() == []
