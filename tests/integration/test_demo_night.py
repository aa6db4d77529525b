"""The demo of a night's batch, in its short form."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS = 10


def test_a_short_night_goes_as_it_must(images_root: Path) -> None:
    env = {**os.environ, "SANDFLEET_IMAGES__ROOT": str(images_root), "COLUMNS": "120"}
    command = [sys.executable, str(ROOT / "demo" / "night.py"), "--cases", "200"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert [said.count(f"\n{step}. ") for step in range(1, STEPS + 1)] == [1] * STEPS, said
    assert "of 200 jobs were queued" in said
    assert "all of it is as it must be" in said
