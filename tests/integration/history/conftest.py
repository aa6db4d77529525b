"""Ended runs on a database of the test's own, and a history of them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from past import Past
from sandfleet_web.history import writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet import Fleet
    from sandfleet_worker.delivery.ledger import Ledger


@pytest.fixture
def past(url: str, fleet: Fleet, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Past]:
    """Jobs that end without a worker; the writer's pauses are short."""
    monkeypatch.setattr(writer, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(writer, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(writer, "RETRY_SECONDS", (0.05,))
    monkeypatch.setenv("SANDFLEET_WEB__HISTORY__FILE", str(tmp_path / "history.db"))
    found = Past(url, fleet, ledger, tmp_path)
    yield found
    found.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
