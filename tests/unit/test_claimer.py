"""How often the claimer asks Redis."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_worker.delivery import claimer as claims_module
from sandfleet_worker.delivery.claimer import Claimer
from sandfleet_worker.delivery.held_claims import HeldClaims
from sandfleet_worker.delivery.host_slots import HostSlots
from sandfleet_worker.delivery.queue_rotation import QueueRotation
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def new_claimer(slots: HostSlots, ledger: Any, is_stopping: Callable[[], bool]) -> Claimer:
    return Claimer(
        SimpleNamespace(),  # type: ignore[arg-type]
        ledger,
        slots,
        HeldClaims(2),
        QueueRotation("q", ()),
        memory=SimpleNamespace(is_high=lambda: False),  # type: ignore[arg-type]
        is_stopping=is_stopping,
        on_unstarted=lambda *_: None,
        on_failure=lambda _: None,
    )


def test_jobs_that_wait_for_memory_are_asked_for_now_and_then_and_at_each_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "POLL_SECONDS", 1.0)
    calls: list[float] = []

    def claim(*_: object) -> tuple[None, bool]:
        calls.append(time.monotonic())
        return None, False

    slots = HostSlots(tmp_path, 2, 1 << 30)
    other = slots.acquire()
    assert other is not None
    ledger: Any = SimpleNamespace(claim=claim, lacks_memory=True, is_cordoned=False, read_queues=list)
    is_over = threading.Event()
    claimer = new_claimer(slots, ledger, is_over.is_set)
    claimer.start(lambda _: None)
    try:
        wait_until(lambda: calls, 10, "it asks")
        time.sleep(0.5)
        assert len(calls) < 4
        asked = len(calls)
        wait_until(lambda: len(calls) > asked, 10, "it has just asked again")
        released = time.monotonic()
        other.release()
        wait_until(lambda: calls[-1] > released, 10, "it asks again")
        assert calls[-1] - released < 0.6
    finally:
        is_over.set()
        claimer.stop()
        slots.close()


def test_an_end_between_the_sum_of_the_memory_and_the_claim_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims_module, "POLL_SECONDS", 5.0)
    calls: list[float] = []
    slots = HostSlots(tmp_path, 2, 1 << 30)
    other = slots.acquire()
    assert other is not None

    def read_queues() -> list[str]:  # called after the slot is taken, before the claim
        other.release()
        return []

    def claim(*_: object) -> tuple[None, bool]:
        calls.append(time.monotonic())
        return None, False

    ledger: Any = SimpleNamespace(claim=claim, lacks_memory=True, is_cordoned=False, read_queues=read_queues)
    is_over = threading.Event()
    claimer = new_claimer(slots, ledger, is_over.is_set)
    claimer.start(lambda _: None)
    try:
        wait_until(lambda: len(calls) > 1, 2, "it asks again at once")
    finally:
        is_over.set()
        if last := slots.acquire():
            last.release()  # ends its wait
        claimer.stop()
        slots.close()
