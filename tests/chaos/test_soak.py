"""A short soak; the long one is `make soak`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("soak.py")


@pytest.mark.timeout(420)
def test_a_fleet_that_is_broken_at_random_for_half_a_minute_keeps_its_promises(images_root: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--minutes", "0.5", "--images", str(images_root)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"
