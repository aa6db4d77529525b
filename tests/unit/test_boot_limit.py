"""The limit of sandboxes that boot at once."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.errors import Cancelled, SandboxTimeout
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.start_hooks import NoHooks
from sandfleet_worker.sandbox.warm.boot_limit import SHORT_WAIT_SECONDS, BootLimit

if TYPE_CHECKING:
    from collections.abc import Iterator


def test_a_wait_for_a_boot_slot_ends_with_the_deadline_or_a_cancel_and_takes_none() -> None:
    boot_limit = BootLimit(1)
    slot = boot_limit.acquire(Cancellation())
    began = time.monotonic()
    with pytest.raises(SandboxTimeout, match="deadline"):
        boot_limit.acquire(Cancellation(), began + 0.1)
    assert 0.1 <= time.monotonic() - began < 2
    cancelled = Cancellation()
    cancelled.cancel()
    with pytest.raises(Cancelled):
        boot_limit.acquire(cancelled, began + 3600)
    slot.release()
    assert boot_limit.acquire(Cancellation(), began) is not None, "a free boot slot is taken whatever the time"


class Hooks(NoHooks):
    """Notes what a job waits for; `error` is what taking its slot again raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.waits: list[str] = []
        self._error = error

    @contextmanager
    def waiting(self, why: str, *, is_remote: bool = False) -> Iterator[None]:
        assert not is_remote
        self.waits.append(why)
        yield
        if self._error:
            raise self._error

    def start(self) -> None:
        """Allow it."""


def test_only_a_long_wait_calls_the_hook() -> None:
    boot_limit, hooks = BootLimit(1), Hooks()
    slot = boot_limit.acquire(Cancellation(), None, hooks)
    assert hooks.waits == []
    threading.Timer(SHORT_WAIT_SECONDS + 0.2, slot.release).start()
    boot_limit.acquire(Cancellation(), None, hooks).release()
    assert hooks.waits == ["its turn to boot"]


def test_a_boot_slot_is_released_by_a_job_that_gets_no_slot_of_the_host() -> None:
    boot_limit, hooks = BootLimit(1), Hooks(Cancelled.of("no slot"))
    slot = boot_limit.acquire(Cancellation())
    threading.Timer(SHORT_WAIT_SECONDS + 0.2, slot.release).start()
    with pytest.raises(Cancelled, match="no slot"):
        boot_limit.acquire(Cancellation(), None, hooks)
    assert boot_limit.try_acquire() is not None
