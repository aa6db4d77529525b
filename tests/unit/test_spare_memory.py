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
    memory.note(PLAN, 72 * MIB, 56 * MIB)
    assert memory.find_used(PLAN) == 72 * MIB
    # 192 MiB: 72 and 48 in the first round, 72 more in the second.
    assert memory.trim({PLAN: 3, PLAIN: 1}, 4) == {PLAN: 2, PLAIN: 1}


def test_what_is_kept_leaves_room_to_prepare_each_of_it_again() -> None:
    memory = SpareMemory(extra_bytes=0, prepared_bytes=512 * MIB)
    memory.note(PLAN, 72 * MIB, 110 * MIB)
    assert memory.need(PLAN, 4) == 126 * MIB, "its peak, and a margin"
    assert memory.trim({PLAN: 3, PLAIN: 1}, 4) == {PLAN: 1, PLAIN: 1}
    assert memory.fits(PLAN, 4, spares(plain=1))
    memory.note(PLAN, 72 * MIB, 600 * MIB)
    assert memory.need(PLAN, 4) == 192 * MIB


def test_the_largest_peak_counts_until_a_preparation_has_failed() -> None:
    memory = SpareMemory(extra_bytes=512 * MIB, prepared_bytes=512 * MIB)
    memory.note(PLAN, 72 * MIB, 110 * MIB)
    memory.note(PLAN, 70 * MIB, 90 * MIB)
    assert (memory.find_used(PLAN), memory.need(PLAN, 4)) == (70 * MIB, 126 * MIB)
    memory.forget(PLAN)
    assert memory.need(PLAN, 4) == 256 * MIB, "it may need more at times"
    memory.forget(PLAN)


def test_a_preparation_that_is_added_later_is_tried_in_what_is_left_beside_the_others() -> None:
    memory = SpareMemory(extra_bytes=0, prepared_bytes=512 * MIB)
    memory.note(PLAN, 72 * MIB, 72 * MIB)
    assert memory.trim({PLAN: 2, OTHER: 2}, 4) == {PLAN: 1, OTHER: 1}
    # 192 MiB without 72 and 16 MiB to prepare the first again.
    assert memory.need(OTHER, 4) == 104 * MIB
    assert memory.fits(OTHER, 4, spares(72))
    assert not memory.fits(OTHER, 4, spares(72, 72)), "one of the first goes before"
    memory.note(OTHER, 60 * MIB, 90 * MIB)
    assert memory.trim({PLAN: 2, OTHER: 2}, 4) == {PLAN: 1, OTHER: 1}
    assert memory.fits(PLAN, 4, spares(60))
    assert memory.fits(OTHER, 4, spares(72))


def test_a_preparation_for_which_too_little_is_left_is_not_tried() -> None:
    memory = SpareMemory(extra_bytes=0, prepared_bytes=512 * MIB)
    memory.note(PLAN, 72 * MIB, 72 * MIB)
    assert memory.trim({PLAN: 1, OTHER: 1}, 2) == {PLAN: 1}
    assert memory.trim({OTHER: 1, PLAN: 1}, 2) == {OTHER: 1}, "the plan that jobs ask for most comes first"


def test_prepared_spares_have_a_bound_of_their_own() -> None:
    memory = SpareMemory(extra_bytes=4096 * MIB, prepared_bytes=300 * MIB)
    memory.note(PLAN, 100 * MIB, 84 * MIB)
    memory.note(OTHER, 100 * MIB, 84 * MIB)
    assert memory.trim({PLAN: 3, OTHER: 3}, 6) == {PLAN: 2, OTHER: 1}
