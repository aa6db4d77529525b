"""A short soak; the long one is `make soak`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harms import SteppedClock

PROGRAM = Path(__file__).with_name("soak.py")


@pytest.mark.timeout(420)
def test_a_fleet_that_is_broken_at_random_for_half_a_minute_keeps_its_promises(images_root: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--minutes", "0.5", "--images", str(images_root)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert ended.returncode == 0, f"{ended.stdout}\n{ended.stderr}"


def test_a_step_of_the_wall_clock_does_not_change_waits(tmp_path: Path) -> None:
    clock = SteppedClock(tmp_path)
    code = """
import sys, threading, time
for line in sys.stdin:
    since = time.monotonic()
    time.sleep(0.05)
    threading.Event().wait(0.05)
    print(time.time(), time.monotonic() - since, flush=True)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=os.environ | clock.env, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for step in (0, 7200, -7200):
            clock.step(step)
            process.stdin.write("\n")
            process.stdin.flush()
            shown, waited = map(float, process.stdout.readline().split())
            assert abs(shown - time.time() - step) < 10
            assert 0.1 <= waited < 10
        process.stdin.close()
