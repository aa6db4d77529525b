"""The store keeps what jobs use, and is told so once an hour."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.errors import Cancelled
from sandfleet_config.scripts import DEAD_TTL_SECONDS
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.store.protocol import StoreDown
from sandfleet_worker.files.kept import RENEWED_SECONDS, KeptInputs
from sandfleet_worker.sandbox.process.cancellation import Cancellation

if TYPE_CHECKING:
    from collections.abc import Collection

A, B = "a" * 64, "b" * 64
RESULT_TTL = 7200.0
SPEC = SandboxSpec.model_validate(
    {
        "image": "x",
        "files": [{"path": "1", "sha256": A}, {"path": "2", "sha256": A}, {"path": "3", "content": "c"}],
        "stdin": {"sha256": B},
        "timeout": 100,
        "grace": 10,
        "queue_ttl": 5000,
    }
)
SECONDS = 5000 + 110 + RESULT_TTL


class FakeReferences:
    def __init__(self) -> None:
        self.calls: list[tuple[list[str], float]] = []
        self.error: Exception | None = None

    def keep(self, names: Collection[str], seconds: float) -> None:
        self.calls.append((list(names), seconds))
        if self.error is not None:
            raise self.error


@pytest.fixture
def references() -> FakeReferences:
    return FakeReferences()


@pytest.fixture
def kept(references: FakeReferences) -> KeptInputs:
    known: Any = references
    return KeptInputs(known, RESULT_TTL)


def nothing(_: float) -> None:
    """Wait for nothing."""


def test_inputs_are_renewed_once_an_hour_and_at_once_if_they_are_needed_for_longer(
    kept: KeptInputs, references: FakeReferences, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    kept.keep(SPEC, nothing)
    kept.keep(SPEC, nothing)
    assert references.calls == [([A, B], SECONDS)]
    clock[0] += RENEWED_SECONDS + 1
    kept.keep(SPEC, nothing)
    assert len(references.calls) == 2
    kept.keep_for_dead_letter(SPEC, nothing)
    assert references.calls[2:] == [([A, B], DEAD_TTL_SECONDS)]
    kept.keep(SandboxSpec(image="x"), nothing)
    assert len(references.calls) == 3


def test_a_failure_does_not_stop_the_job_and_the_next_one_tries_again(
    kept: KeptInputs, references: FakeReferences, caplog: pytest.LogCaptureFixture
) -> None:
    references.error = StoreDown("object is being deleted")
    kept.keep(SPEC, nothing)
    assert "was not told to keep 2 inputs" in caplog.text
    references.error = None
    kept.keep(SPEC, nothing)
    assert len(references.calls) == 2


def test_a_job_that_ends_does_not_wait_for_the_garbage_collector(
    kept: KeptInputs, references: FakeReferences, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected = threading.Event()
    monkeypatch.setattr(references, "keep", lambda *_: collected.wait(60))
    cancel = Cancellation()
    timer = threading.Timer(0.3, cancel.cancel)
    timer.start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        kept.keep(SPEC, lambda _: cancel.raise_if_set())
    assert time.monotonic() - began < 10
    collected.set()
    timer.join()
