"""The ``sandfleet`` command with a fleet in memory."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet import ErrorCode, Outcome, SandboxSpec
from sandfleet.testing.fake_fleet import FakeFleet

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet.testing.fake_fleet import Ending

    Capture = pytest.CaptureFixture[str]
    Patch = pytest.MonkeyPatch
    Use = Callable[[Callable[[SandboxSpec], Ending]], FakeFleet]


def new_use(monkeypatch: Patch) -> Use:
    """Return a function that makes the command talk to a fake fleet with the given handler."""

    def use(handler: Callable[[SandboxSpec], Ending]) -> FakeFleet:
        fleet = FakeFleet(handler)
        for module in ("batch", "batch_control", "dead", "lists", "results"):
            monkeypatch.setattr(f"sandfleet.cli.{module}.Fleet", lambda: fleet)
        monkeypatch.setattr("sandfleet.cli.opening.open_fleet", lambda: fleet)
        return fleet

    return use


class Binary:
    """Standard input with bytes behind it."""

    def __init__(self, raw: bytes) -> None:
        self.buffer = io.BytesIO(raw)


def end(code: ErrorCode, message: str = "", **fields: Any) -> Callable[[SandboxSpec], Outcome]:
    """Return a handler that ends each job with that code."""
    return lambda _: Outcome.of(code, "", message, **fields)
