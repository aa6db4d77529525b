"""The sandboxes that a pool keeps, with stand-ins for sandboxes and their poller."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from sandfleet_worker.sandbox.warm.fill_schedule import FillSchedule
from sandfleet_worker.sandbox.warm.spares import Spares

_numbers = itertools.count(10)


class FakePoller:
    def __init__(self) -> None:
        self.fds: set[int] = set()

    def register(self, fd: int, _event: int) -> None:
        self.fds.add(fd)

    def unregister(self, fd: int) -> None:
        self.fds.remove(fd)


@dataclass
class FakeSupervision:
    fd: int = field(default_factory=lambda: next(_numbers))
    next_deadline: float | None = None

    def fileno(self) -> int:
        return self.fd


@dataclass(eq=False)
class FakeSandbox:
    plan: str | None
    is_warm: bool = False
    is_stopping: bool = False
    prepared: Any = None
    supervision: FakeSupervision = field(default_factory=FakeSupervision)


def new_spares(*sandboxes: FakeSandbox) -> tuple[Any, FakePoller]:
    poller: Any = FakePoller()
    spares: Any = Spares(poller)
    for sandbox in sandboxes:
        spares.add(sandbox)
    return spares, poller


def test_an_idle_spare_is_taken_before_one_that_boots() -> None:
    boots, idle = FakeSandbox("a"), FakeSandbox("a", is_warm=True)
    spares, poller = new_spares(boots, idle)
    assert poller.fds == {boots.supervision.fd, idle.supervision.fd}
    assert [spares.take("a"), spares.take("a"), spares.take("a")] == [idle, boots, None]
    assert not poller.fds
    assert spares.count_all() == 0


def test_unbooted_sandboxes_are_no_spares() -> None:
    unbooted = FakeSandbox(None)
    spares, poller = new_spares(unbooted)
    assert (spares.count_all(), poller.fds) == (0, set())
    assert (spares.take_unbooted(), spares.take_unbooted()) == (unbooted, None)


def test_the_plan_that_lacks_most_is_missing() -> None:
    spares, _ = new_spares(FakeSandbox("a"), FakeSandbox("b"))
    assert spares.find_missing({"a": 2, "b": 3}) == "b"
    assert spares.find_missing({"a": 1, "b": 1}) is None


def test_a_spare_makes_place_for_a_plan_that_has_none() -> None:
    first, second, third = FakeSandbox("a"), FakeSandbox("a"), FakeSandbox("b")
    spares, _ = new_spares(first, second, third)
    assert spares.find_surplus(3, {"a": 1, "b": 1, "c": 1}) == [first]
    assert spares.find_surplus(3, {"a": 2, "b": 1}) == []
    assert spares.find_surplus(4, {"a": 1, "b": 1, "c": 1}) == []
    assert spares.find_unwanted({"b": 3}) == [first, second]


def test_a_spare_is_due_at_its_deadline_or_while_it_stops() -> None:
    booting, stopping, idle = FakeSandbox("a"), FakeSandbox("a", is_stopping=True), FakeSandbox("a", is_warm=True)
    booting.supervision.next_deadline = 50.0
    spares, _ = new_spares(booting, stopping, idle)
    assert spares.find_due(49.0) == [stopping.supervision.fd]
    assert spares.find_due(50.0) == [booting.supervision.fd, stopping.supervision.fd]
    assert 50.0 in spares.find_deadlines()
    assert (spares.count_idle(), spares.count_idle("a"), spares.count_idle("b")) == (1, 1, 0)
    assert spares.find(idle.supervision.fd) is idle
    assert set(spares.take_all()) == {booting, stopping, idle}
    assert spares.find(idle.supervision.fd) is None


def test_failures_in_a_row_back_off_and_a_spare_that_is_up_ends_the_row() -> None:
    schedule = FillSchedule()
    assert schedule.is_due(0.0)
    assert [schedule.note_failure() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    schedule.note_success(is_up=False)
    assert schedule.note_failure() == 60
    schedule.note_success(is_up=True)
    assert schedule.note_failure() == 1
    schedule.postpone()
    assert schedule.next_at is not None
    assert not schedule.is_due(schedule.next_at - 0.5)
    schedule.clear()
    assert schedule.is_due(0.0)
