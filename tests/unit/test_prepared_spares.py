"""Which prepared spares a pool keeps, and what it says of those that it cannot keep."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prepared_plan import INTERPRETER, PLAN
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_worker.sandbox.warm.demand import Demand
from sandfleet_worker.sandbox.warm.prepared_spares import PreparedSpares
from sandfleet_worker.sandbox.warm.quarantine import Quarantine
from sandfleet_worker.sandbox.warm.spare_memory import SpareMemory
from sandfleet_worker.sandbox.warm.spares import Spares
from sandfleet_worker.sandbox.warm.wanted import WantedSpares

MIB = 1 << 20
LISTING: Any = None  # only the pool asks it
PLAIN = replace(PLAN, interpreter=None)
OTHER = replace(PLAN, interpreter=replace(INTERPRETER, message=b"other", name="python:other"))


def test_a_preparation_without_memory_is_told_once_with_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    memory = SpareMemory(extra_bytes=0, prepared_bytes=512 * MIB)
    prepared = PreparedSpares(memory, Quarantine(PreparedSettings()), LISTING, 4)
    poller: Any = None
    demand = Demand(2, 300)
    wanted = WantedSpares(Spares(poller), demand, prepared)
    for plan in (PLAN, PLAN, OTHER):
        demand.note(plan)

    assert wanted.find_missing() == PLAN
    assert not caplog.messages, "how much the first one leaves is not known yet"
    memory.note(PLAN, 72 * MIB, 72 * MIB)
    for _ in range(3):
        wanted.find_missing()
    (said,) = caplog.messages
    for part in ("python:other", "SANDFLEET_PREPARED__BUDGET_BYTES", "SANDFLEET_WARM__SIZE", "restart the worker"):
        assert part in said


def test_a_plan_that_comes_when_all_places_are_taken_gets_one() -> None:
    """As a preparation of `SANDFLEET_WARM__IMAGES` does if the plain spares were quicker."""
    memory = SpareMemory(extra_bytes=512 * MIB, prepared_bytes=512 * MIB)
    poller: Any = SimpleNamespace(register=lambda *_: None)
    spares, demand = Spares(poller), Demand(2, 300)
    wanted = WantedSpares(spares, demand, PreparedSpares(memory, Quarantine(PreparedSettings()), LISTING, 4))
    demand.pin(PLAIN)
    for number in range(2):
        idle: Any = SimpleNamespace(plan=PLAIN, prepared=None, supervision=SimpleNamespace(fileno=lambda n=number: n))
        spares.add(idle)
    assert not wanted.lacks_spares()
    demand.pin(PLAN)
    assert wanted.lacks_spares()
    assert len(wanted.find_surplus()) == 1


@pytest.mark.parametrize(("boots", "most"), [(16, 4), (8, 2), (4, 1), (1, 1)])
def test_the_processes_of_a_host_share_how_many_preparations_run_at_once(boots: int, most: int) -> None:
    """Each may boot its part of two sandboxes a core, and prepare on its part of half of the cores."""
    memory = SpareMemory(extra_bytes=4096 * MIB, prepared_bytes=4096 * MIB)
    prepared = PreparedSpares(memory, Quarantine(PreparedSettings()), LISTING, boots)
    preparing: Any = [SimpleNamespace(prepared=SimpleNamespace(is_up=False, memory_bytes=MIB)) for _ in range(most)]
    assert prepared.may_boot(PLAN, 8, preparing[1:])
    assert not prepared.may_boot(PLAN, 8, preparing)
