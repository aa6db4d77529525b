"""Wait until a condition is true, instead of sleeping."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

PAUSE_SECONDS = 0.02
SLOWNESS = int(os.environ.get("TEST_SLOWNESS", "1"))
"""How many times slower than a usual machine this one is, such as an emulated processor."""
JOB_SECONDS = 20 * SLOWNESS
"""The usual timeout of a test's job."""


def wait_until(predicate: Callable[[], object], timeout_seconds: float, description: str) -> None:
    """Return once `predicate` is true; fail with `description` after `timeout_seconds`."""
    timeout_seconds *= SLOWNESS
    deadline = time.monotonic() + timeout_seconds
    while not predicate():
        if time.monotonic() > deadline:
            msg = f"not within {timeout_seconds} s: {description}"
            raise AssertionError(msg)
        time.sleep(PAUSE_SECONDS)
