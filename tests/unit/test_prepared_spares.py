"""Which prepared spares a pool keeps, and what it says of those that it cannot keep."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from prepared_plan import INTERPRETER, PLAN
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_worker.sandbox.warm.demand import Demand
from sandfleet_worker.sandbox.warm.prepared_spares import PreparedSpares
from sandfleet_worker.sandbox.warm.quarantine import Quarantine
from sandfleet_worker.sandbox.warm.spare_memory import SpareMemory
from sandfleet_worker.sandbox.warm.spares import Spares
from sandfleet_worker.sandbox.warm.wanted import WantedSpares

if TYPE_CHECKING:
    import pytest

MIB = 1 << 20
OTHER = replace(PLAN, interpreter=replace(INTERPRETER, message=b"other", name="python:other"))


def test_a_preparation_without_memory_is_told_once_with_the_settings(caplog: pytest.LogCaptureFixture) -> None:
    memory = SpareMemory(extra_bytes=0, prepared_bytes=512 * MIB)
    prepared = PreparedSpares(memory, Quarantine(PreparedSettings()))
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
