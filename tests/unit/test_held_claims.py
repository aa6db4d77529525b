"""The claims that a worker holds: slots that are lent, suspects, and times that count from the start."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from sandfleet_config.outcome import Attempt
from sandfleet_config.settings import WorkerSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import JobRequest
from sandfleet_worker.delivery import held_claims as held_module
from sandfleet_worker.delivery.claim import MAX_STARTS, Claim, Flag
from sandfleet_worker.delivery.held_claims import HeldClaims
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.intake import Intake
from sandfleet_worker.delivery.read_message import JobMessage
from sandfleet_worker.job_run import JobRun
from sandfleet_worker.sandbox.process.cancellation import Cancellation

CLAIM = Claim("c", "job", Flag.START, b"")
WAITING = replace(CLAIM, is_waiting=True)


class FakeSlot:
    def __init__(self) -> None:
        self.released, self.was_used = 0, False

    def release(self, *, was_used: bool = True) -> None:
        self.released += 1
        self.was_used = was_used


def hold(claim: Claim = CLAIM) -> tuple[HeldClaims, Any]:
    held, slot = HeldClaims(1), FakeSlot()
    assert held.take_capacity(0)
    held.add(claim, slot)  # type: ignore[arg-type]
    return held, slot


def test_a_slot_is_lent_only_while_its_job_waits_and_freed_once() -> None:
    held, slot = hold()
    held.give_back_slot(CLAIM)
    assert slot.released == 0, "it does not wait"
    held.wait(WAITING)
    assert held.waiting_job_ids() == ["job"]
    held.give_back_slot(WAITING)
    assert slot.released == 1
    assert not held.take_capacity(0), "the worker's own place stays taken"
    assert held.end_wait(WAITING)
    other: Any = FakeSlot()
    held.set_slot(WAITING, other)
    held.give_back_slot(WAITING)
    assert other.released == 0, "the wait is over"
    held.start(CLAIM)
    assert held.waiting_job_ids() == []
    held.free_slot(CLAIM)
    held.remove(CLAIM)
    assert (slot.released, other.released) == (1, 1)
    assert held.take_capacity(0)
    late: Any = FakeSlot()
    held.set_slot(CLAIM, late)
    assert late.released == 1, "the job is gone"


def hold_more(held: HeldClaims, name: str) -> Claim:
    claim = replace(CLAIM, claim_id=name, job_id=name)
    assert held.take_capacity(0)
    held.add(claim, FakeSlot())  # type: ignore[arg-type]
    return claim


def test_a_job_that_waits_long_for_another_host_does_not_count_until_it_goes_on() -> None:
    held = HeldClaims(2, waiting_limit=2)
    waiting = [hold_more(held, "a"), hold_more(held, "b")]
    assert not held.take_capacity(0)
    for claim in waiting:
        held.wait(claim, is_remote=True)
        assert not held.take_capacity(0), "a short wait changes nothing"
        held.give_back_slot(claim)
        held.give_back_slot(claim)
        hold_more(held, f"beside-{claim.job_id}")
    assert not held.take_capacity(0)
    running = held.claims()[-1]
    held.wait(running, is_remote=True)
    held.give_back_slot(running)
    assert not held.take_capacity(0), "no more than waiting_limit wait beside those that count"

    assert held.end_wait(waiting[0])
    assert not held.take_back_capacity(waiting[0], 0)
    held.remove(running)
    assert not held.take_capacity(0), "the place is kept for the job whose wait is over"
    assert held.take_back_capacity(waiting[0], 0)
    assert held.take_back_capacity(waiting[0], 0), "once"
    held.end_wait(waiting[1])
    held.remove(waiting[1])
    held.remove(waiting[0])
    assert held.take_capacity(0)
    assert not held.take_capacity(0)
    assert held.take_back_capacity(waiting[1], 0), "a job that is gone needs none"


def test_a_wait_for_something_of_this_host_counts_on() -> None:
    held = HeldClaims(1, waiting_limit=2)
    claim = hold_more(held, "a")
    held.wait(claim, is_remote=True)
    held.end_wait(claim)
    held.wait(claim)
    held.give_back_slot(claim)
    assert held.end_wait(claim), "it has given back its slot"
    assert not held.take_capacity(0)
    held.remove(claim)
    assert held.take_capacity(0)


def test_a_wait_that_ends_in_time_keeps_the_slot() -> None:
    held, slot = hold()
    held.wait(WAITING)
    assert not held.end_wait(WAITING)
    held.give_back_slot(WAITING)
    assert slot.released == 0


def test_the_time_of_a_job_counts_from_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    held, _ = hold()
    held.expect_end(CLAIM, -1)
    assert held.overdue_job_ids() == ["job"]
    held.wait(WAITING)
    assert held.overdue_job_ids() == []
    held.start(CLAIM)
    assert held.overdue_job_ids() == ["job"]
    monkeypatch.setattr(held_module, "LONGEST_WAIT_SECONDS", -1)
    held.expect_end(CLAIM, 60)
    assert held.overdue_job_ids() == []
    held.wait(WAITING)
    assert held.overdue_job_ids() == ["job"], "a wait does not last for ever"


def test_a_job_that_waits_for_a_slot_again_does_not_hang_and_knows_what_memory_it_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, slot = hold()
    slot.reserve = lambda _, is_new: is_new
    assert held.reserve(CLAIM, 700)
    monkeypatch.setattr(held_module, "LONGEST_WAIT_SECONDS", -1)
    held.wait(WAITING)
    held.give_back_slot(WAITING)
    assert held.end_wait(WAITING)
    assert held.find_memory(WAITING) == 700
    assert held.overdue_job_ids() == [], "the slots are others', for as long as their jobs last"
    other: Any = FakeSlot()
    other.reserve = lambda _: False
    assert not held.set_slot(WAITING, other)
    assert (other.released, other.was_used, held.find_memory(WAITING)) == (1, False, 700)
    other.reserve = lambda _: True
    assert held.set_slot(WAITING, other)
    assert held.overdue_job_ids() == ["job"], "now it is to start"


def test_what_a_stock_producers_job_says_of_its_attempts_holds_for_whoever_settles_it() -> None:
    asked: list[Any] = []

    def ask(*, keys: list[Any], args: list[Any]) -> int:
        asked.append((keys, args))
        return 1

    client: Any = SimpleNamespace(register_script=lambda _: ask)
    settings = WorkerSettings.model_validate({"redis_url": "redis://nowhere"})
    intake = Intake(settings, Identity("h", "h.1", "h:1:x"), None, lambda _: client)  # type: ignore[arg-type]
    assert intake.held_claims.take_capacity(0)
    intake.held_claims.add(CLAIM, FakeSlot())  # type: ignore[arg-type]
    host: Any = SimpleNamespace(name="h", intake=intake, slots=None)
    run = JobRun(host, SimpleNamespace(job_id="job", cancellation=Cancellation()), JobMessage("job"), CLAIM)  # type: ignore[arg-type]
    run._remember(JobRequest(spec=SandboxSpec(image="x", max_attempts=1)))
    found = intake.held_claims.find("c")
    assert found is not None
    assert (asked[0][1][-2:], run.claim.max_attempts, found.max_attempts) == ([1, 86_400_000], 1, 1)


def test_a_suspect_is_one_until_it_has_outlived_its_earlier_run() -> None:
    for seconds, is_suspect in ((None, False), (0.0, False), (60.0, True)):
        held, _ = hold(replace(CLAIM, suspect_seconds=seconds))
        assert held.holds_suspect() is is_suspect
    held, _ = hold()
    held.wait(replace(WAITING, suspect_seconds=0.0))
    assert held.holds_suspect(), "its time has not begun"
    held.start(replace(CLAIM, suspect_seconds=60.0))
    held.free_slot(CLAIM)
    assert not held.holds_suspect(), "it has ended"


def test_charged_starts_count_and_all_starts_are_bounded() -> None:
    def claim(max_attempts: int, *charged: bool) -> Claim:
        started = datetime.now(UTC)
        attempts = tuple(Attempt(host="h", worker="w", started=started, charged=item) for item in charged)
        return replace(CLAIM, attempts=attempts, max_attempts=max_attempts)

    many = (False,) * MAX_STARTS
    rows = (
        (claim(3), False, False),
        (claim(3, True, False, False, False), False, False),
        (claim(3, True, False, True, True), True, False),
        (claim(1), False, True),
        (claim(1, False), True, True),
        (claim(3, *many[1:]), False, False),
        (claim(3, *many), True, True),
    )
    for found, is_last_attempt, is_last_start in rows:
        assert (found.is_last_attempt, found.is_last_start) == (is_last_attempt, is_last_start), found.attempts
