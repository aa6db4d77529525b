"""Whose failure it is that a spare has died, or cannot be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from prepared_plan import PLAN
from sandfleet_worker.sandbox.warm.spare_failures import SpareFailures
from sandfleet_worker.sandbox.warm.spares import wake_spare


@dataclass
class FakePrepared:
    is_up: bool = True
    is_out_of_memory: bool = False
    is_host_out_of_memory: bool = False
    wrote_ahead: bool = False

    def explain_growth(self) -> str:
        return "it grew"


@dataclass
class Stand:
    """A pool's parts: what was told to each, in order."""

    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        booter: Any = SimpleNamespace(note_failure=lambda why: self.told.append(f"back off: {why}"))
        prepared: Any = SimpleNamespace(note_failure=self.hold)
        remover: Any = SimpleNamespace(add=lambda _: self.told.append("remove"))
        self.remover = remover
        self.failures = SpareFailures(
            booter, prepared, remover, lambda plan: self.told.append(f"forget {plan is PLAN}")
        )

    def hold(self, _: Any, why: str) -> bool:
        self.told.append(f"held: {why}")
        return True


def new_spare(prepared: Any, *, is_ready: bool = True, is_awake: bool = True, has_oom_kill: bool = False) -> Any:
    clock = SimpleNamespace(ready=1.0 if is_ready else None)
    return SimpleNamespace(
        plan=PLAN,
        prepared=prepared,
        supervision=SimpleNamespace(clock=clock),
        cgroup=SimpleNamespace(counters=SimpleNamespace(has_oom_kill=has_oom_kill)),
        read_boot_failure=lambda: "why",
        wake=lambda: is_awake,
    )


@pytest.mark.parametrize(
    ("spare", "told"),
    [
        (new_spare(None), ["remove", "back off: why"]),
        (new_spare(FakePrepared(), is_ready=False), ["remove", "back off: why"]),
        (new_spare(FakePrepared()), ["remove", "held: why", "forget True"]),
        (new_spare(FakePrepared(is_out_of_memory=True)), ["remove", "held: why", "forget True"]),
        (new_spare(FakePrepared(is_host_out_of_memory=True)), ["remove", "back off: why"]),
    ],
    ids=["plain", "boot", "preparation", "its memory", "the host's memory"],
)
def test_a_spare_that_has_died(spare: Any, told: list[str]) -> None:
    stand = Stand()
    stand.failures.remove_dead(spare)
    assert stand.told == told


@pytest.mark.parametrize(
    ("prepared", "told"),
    [
        (None, []),
        (FakePrepared(), []),
        (FakePrepared(wrote_ahead=True), ["held: it wrote to the output of the job that was to come", "forget True"]),
        (FakePrepared(is_out_of_memory=True), ["held: it grew", "forget True"]),
        (
            FakePrepared(is_host_out_of_memory=True),
            ["back off: the host, or a cgroup above the sandbox's, ran out of memory"],
        ),
    ],
    ids=["plain", "well", "wrote", "its memory", "the host's memory"],
)
def test_a_spare_that_cannot_be_used(prepared: Any, told: list[str]) -> None:
    stand = Stand()
    assert not wake_spare(new_spare(prepared, has_oom_kill=True), stand.failures.reject)
    assert stand.told == ["remove", *told]
    assert wake_spare(new_spare(prepared), stand.failures.reject)


def test_the_reason_is_read_before_the_cgroup_goes() -> None:
    stand = Stand()
    spare = new_spare(FakePrepared(is_out_of_memory=True), has_oom_kill=True)

    def remove(_: Any) -> None:
        spare.prepared.is_out_of_memory = False  # the counters are closed

    stand.remover.add = remove
    stand.failures.reject(spare)
    assert stand.told == ["held: it grew", "forget True"]


def test_a_spare_whose_reason_cannot_be_read_is_removed() -> None:
    def fail() -> str:
        raise OSError(24, "Too many open files")

    stand, spare = Stand(), new_spare(FakePrepared())
    spare.read_boot_failure = fail
    with pytest.raises(OSError, match="Too many"):
        stand.failures.remove_dead(spare)
    assert stand.told == ["remove"]
