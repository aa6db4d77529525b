"""A worker that is stuck ends, one in an outage does not."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.held_claims import HeldClaims
from sandfleet_worker.delivery.watchdog import POLL_SECONDS, STALL_SECONDS, Watchdog
from sandfleet_worker.system.bounded_log import is_log_blocked

LONG = STALL_SECONDS + 1
LEASE_SECONDS = 6.0


def new_watchdog(steady: float = 1e6, quiet: float = 0, *, idle: float = 0, held: Any = None) -> Watchdog:
    lease: Any = SimpleNamespace(steady_seconds=steady, seconds=LEASE_SECONDS, is_lost=False, tries=0)
    claimer: Any = Claiming(time.monotonic() - quiet)
    told: Any = []
    watchdog = Watchdog(lease, claimer, held or HeldClaims(2), 0.1, abandon=told.append, on_failure=told.append)
    watchdog._ticked = time.monotonic() - idle
    return watchdog


class Claiming:
    """A claimer as the watchdog sees it."""

    def __init__(self, progressed: float) -> None:
        self.progressed, self.is_paused = progressed, False

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, ""),
        ({"quiet": 10, "idle": 10}, ""),
        ({"quiet": LONG}, "the claimer"),
        ({"idle": LONG}, "loop"),
        ({"quiet": LONG, "idle": LONG, "steady": 0}, ""),
        ({"quiet": LONG, "idle": LONG, "steady": 30}, ""),
    ],
    ids=str,
)
def test_only_a_stall_while_redis_answers_counts(facts: dict[str, Any], said: str) -> None:
    stall = new_watchdog(**facts).find_stall()

    assert said in stall
    assert bool(stall) == bool(said)


def step(watchdog: Watchdog, seconds: float) -> list[str]:
    """Let the watchdog make the steps of so many seconds, and return what it says."""
    said = [watchdog.find_silence() for _ in range(round(seconds / POLL_SECONDS))]
    return [text for text in said if text]


def test_a_lease_that_begins_no_beat_counts_also_in_an_outage() -> None:
    watchdog = new_watchdog(steady=0)
    lease: Any = watchdog._lease
    for _ in range(100):
        lease.tries += 1
        assert step(watchdog, POLL_SECONDS) == []
    assert step(watchdog, STALL_SECONDS + LEASE_SECONDS) == []
    assert step(watchdog, POLL_SECONDS) == ["the lease has made no progress for 66 s"]
    lease.tries += 1
    assert step(watchdog, POLL_SECONDS) == []
    lease.is_lost = True
    assert step(watchdog, 2 * LONG) == [], "a lost lease begins none"


def test_a_log_that_takes_no_line_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr("sandfleet_worker.delivery.watchdog.is_log_blocked", lambda _: is_log_blocked(0.001))
    watchdog = new_watchdog()
    lease: Any = watchdog._lease
    is_written, can_end = threading.Event(), threading.Event()

    def write() -> None:
        with handler.lock or threading.Lock():
            is_written.set()
            can_end.wait(30)

    def step_once() -> str:
        lease.tries += 1
        return watchdog.find_silence()

    writer = threading.Thread(target=write)
    writer.start()
    assert is_written.wait(30)
    steps = round(STALL_SECONDS / (2 * POLL_SECONDS))
    assert [step_once() for _ in range(steps)] == [""] * steps
    assert step_once() == "the log has taken no line for 60 s: nobody reads stderr"
    can_end.set()
    writer.join()
    assert step_once() == ""


def hold(*names: str) -> tuple[HeldClaims, list[Claim]]:
    held, slot = HeldClaims(len(names)), SimpleNamespace(release=lambda: None)
    claims = [Claim(name, name, Flag.START, b"") for name in names]
    for claim in claims:
        assert held.take_capacity(0)
        held.add(claim, slot)  # type: ignore[arg-type]
    return held, claims


def test_a_job_that_ends_while_the_watchdog_waits_for_the_others_costs_nobody_anything() -> None:
    held, (late, beside) = hold("late", "beside")
    held.expect_end(late, -1)
    watchdog = new_watchdog(held=held)
    watchdog._drain_seconds = 30.0
    end = threading.Timer(0.2, held.remove, (late,))
    end.start()

    began = time.monotonic()
    watchdog._step()

    end.join()
    told: Any = watchdog._abandon.__self__  # type: ignore[attr-defined]
    assert told == []
    assert time.monotonic() - began < 10, "it does not wait for the others any longer"
    assert not watchdog._claimer.is_paused, "jobs are claimed again"  # type: ignore[attr-defined]
    assert held.find(beside.claim_id)


def test_a_job_that_still_hangs_ends_the_worker_once_the_others_are_done() -> None:
    held, (late, beside) = hold("late", "beside")
    held.expect_end(late, -1)
    watchdog = new_watchdog(held=held)
    watchdog._drain_seconds = 30.0
    threading.Timer(0.2, held.remove, (beside,)).start()

    watchdog._step()

    told: Any = watchdog._abandon.__self__  # type: ignore[attr-defined]
    assert told == ["job late should have ended long ago"]
    assert watchdog._claimer.is_paused  # type: ignore[attr-defined]


@pytest.mark.parametrize(("steady", "found"), [(1e6, ["a"]), (0, [])])
def test_a_job_that_hangs_counts_while_redis_answers(steady: float, found: list[str]) -> None:
    held, (claim,) = hold("a")
    held.expect_end(claim, -1)
    assert new_watchdog(steady, held=held).find_overdue() == found


def test_a_job_is_overdue_only_while_its_sandbox_is_not_gone() -> None:
    held, (late, gone) = hold("late", "gone")
    assert held.overdue_job_ids() == []

    for claim in (late, gone):
        held.expect_end(claim, -1)
    held.free_slot(gone)

    assert held.overdue_job_ids() == held.running_job_ids() == ["late"]
    assert held.job_ids() == ["late", "gone"]
    held.expect_end(late, 60)
    assert held.overdue_job_ids() == []
