"""How much memory spares hold, prepared ones among them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from prepared_plan import INTERPRETER, PLAN
from sandfleet_worker.sandbox.warm.spare_memory import IDLE_MEMORY_BYTES, SpareMemory

MIB = 1 << 20
PLAIN = replace(PLAN, interpreter=None)
OTHER = replace(PLAN, interpreter=replace(INTERPRETER, message=b"other"))


@dataclass
class FakePrepared:
    memory_bytes: int


@dataclass
class FakeSpare:
    prepared: FakePrepared | None = None


def spares(*prepared_mib: int, plain: int = 0) -> Any:
    return [FakeSpare(FakePrepared(mib * MIB)) for mib in prepared_mib] + [FakeSpare() for _ in range(plain)]


def test_a_preparation_counts_with_its_limit_until_it_is_done() -> None:
    memory = SpareMemory(extra_bytes=512 * MIB, prepared_bytes=512 * MIB)
    assert memory.need(PLAN, size=4) == 256 * MIB
    assert memory.need(PLAIN, size=4) == IDLE_MEMORY_BYTES
    assert memory.fits(PLAN, 4, spares(256))
    assert not memory.fits(PLAN, 4, spares(256, 80))
    assert memory.fits(PLAN, 4, spares(80, 80, 80))


def test_without_memory_of_their_own_they_take_the_places_of_others() -> None:
    memory = SpareMemory(extra_bytes=0, prepared_bytes=512 * MIB)
    assert memory.need(PLAN, size=4) == 4 * IDLE_MEMORY_BYTES
    assert memory.fits(PLAN, 4, [])
    assert not memory.fits(PLAN, 4, spares(plain=1))
    assert memory.fits(PLAIN, 4, spares(80, plain=1))
    assert not memory.fits(PLAIN, 4, spares(80, plain=2))


def test_targets_are_trimmed_to_what_fits_and_stay_so() -> None:
    memory = SpareMemory(extra_bytes=0, prepared_bytes=512 * MIB)
    assert memory.trim({PLAIN: 4}, 4) == {PLAIN: 4}
    assert memory.trim({PLAN: 3, PLAIN: 1}, 4) == {PLAN: 1}, "its need is not known yet"
    memory.note(PLAN, 72 * MIB)
    assert memory.find_used(PLAN) == 72 * MIB
    # 192 MiB: 72 and 48 in the first round, 72 more in the second.
    assert memory.trim({PLAN: 3, PLAIN: 1}, 4) == {PLAN: 2, PLAIN: 1}


def test_prepared_spares_have_a_bound_of_their_own() -> None:
    memory = SpareMemory(extra_bytes=4096 * MIB, prepared_bytes=300 * MIB)
    memory.note(PLAN, 100 * MIB)
    memory.note(OTHER, 100 * MIB)
    assert memory.trim({PLAN: 3, OTHER: 3}, 6) == {PLAN: 2, OTHER: 1}
