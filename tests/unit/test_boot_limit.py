"""Turns to boot a sandbox."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.errors import Cancelled, SandboxTimeout
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.warm.boot_limit import SHORT_WAIT_SECONDS, BootTurns

if TYPE_CHECKING:
    from collections.abc import Iterator


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


class Hooks:
    """Notes what a job waits for; `error` is what taking its slot again raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.waits: list[str] = []
        self._error = error

    @contextmanager
    def waiting(self, why: str) -> Iterator[None]:
        self.waits.append(why)
        yield
        if self._error:
            raise self._error

    def start(self) -> None:
        """Allow it."""


def test_only_a_wait_that_is_not_short_is_told() -> None:
    turns, hooks = BootTurns(1), Hooks()
    held = turns.wait(Cancellation(), None, hooks)
    assert hooks.waits == []
    threading.Timer(SHORT_WAIT_SECONDS + 0.2, held.end).start()
    turns.wait(Cancellation(), None, hooks).end()
    assert hooks.waits == ["its turn to boot"]


def test_a_turn_is_given_back_by_a_job_that_gets_no_slot() -> None:
    turns, hooks = BootTurns(1), Hooks(Cancelled.of("no slot"))
    held = turns.wait(Cancellation())
    threading.Timer(SHORT_WAIT_SECONDS + 0.2, held.end).start()
    with pytest.raises(Cancelled, match="no slot"):
        turns.wait(Cancellation(), None, hooks)
    assert turns.take() is not None
