"""Turns to boot a sandbox."""

from __future__ import annotations

import time

import pytest
from sandfleet_config.errors import Cancelled, SandboxTimeout
from sandfleet_worker.sandbox.cancellation import Cancellation
from sandfleet_worker.sandbox.turns import BootTurns


def test_a_wait_for_a_turn_ends_with_the_deadline_or_a_cancel_and_takes_none() -> None:
    turns = BootTurns(1)
    held = turns.wait(Cancellation())
    began = time.monotonic()
    with pytest.raises(SandboxTimeout, match="deadline"):
        turns.wait(Cancellation(), began + 0.1)
    assert 0.1 <= time.monotonic() - began < 2
    cancelled = Cancellation()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        turns.wait(cancelled, began + 3600)
    held.end()
    assert turns.wait(Cancellation(), began) is not None, "a turn that is free is taken whatever the time"
