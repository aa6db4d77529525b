"""Batches that are done, and senders whose pauses are short."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hooks import Hooks
from sandfleet_web.notify import sender as sending

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet import Fleet
    from sandfleet_worker.delivery.ledger import Ledger


@pytest.fixture
def hooks(url: str, fleet: Fleet, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hooks]:
    """Batches and senders; pauses are short."""
    monkeypatch.setattr(sending, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(sending, "CHECK_SECONDS", 0.2)
    monkeypatch.setattr(sending, "FIRST_PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(sending, "PAUSE_FACTOR", 1.5)
    hooks = Hooks(url, fleet, ledger, tmp_path)
    yield hooks
    hooks.close()
