"""A job's objects come from the store, or the job says why not: it never waits without an end."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from sandfleet_config.errors import Cancelled, StoreUnavailable
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.files.inputs import LONGEST_SECONDS, InputFetcher
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.start_hooks import NoHooks

if TYPE_CHECKING:
    from collections.abc import Callable

NO_REFERENCES: Any = SimpleNamespace(keep=lambda *_: None)
SPEC = SandboxSpec.model_validate({"image": "python", "files": [{"path": "a", "sha256": "a" * 64}]})


class SlowCache:
    """Fetches a part a minute, and never comes to an end by itself."""

    def __init__(self, clock: list[float]) -> None:
        self._clock = clock

    def find(self, sha256: str) -> int | None:
        del sha256
        return None

    def fetch(self, sha256: str, pause: Callable[[float], None]) -> int:
        del sha256
        while True:
            self._clock[0] += 60.0
            pause(0)


def test_objects_that_come_too_slowly_end_the_wait_before_the_watchdog_does(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    fetcher = InputFetcher(cast("Any", SlowCache(clock)), NO_REFERENCES, 300.0)
    with pytest.raises(StoreUnavailable, match="did not come from the store within 3000 s"):
        fetcher.prepare(SPEC, Cancellation(), NoHooks())
    assert clock[0] - 1000.0 <= LONGEST_SECONDS + 60.0


def test_a_fetch_ends_when_its_job_does() -> None:
    cancel = Cancellation()
    cancel.cancel()
    with pytest.raises(Cancelled):
        InputFetcher(cast("Any", SlowCache([0.0])), NO_REFERENCES, 300.0).prepare(SPEC, cancel, NoHooks())
