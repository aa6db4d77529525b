"""How many worker processes a host has: `SANDFLEET_PROCESSES`."""

from __future__ import annotations

import os
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator

AUTO: Final = "auto"
MAX_PROCESSES: Final = 64
CORES_A_PROCESS: Final = 12
"""One process starts and ends the short jobs of so many cores: docs/explanation/scaling.md."""


def _parse_processes(value: object) -> object:
    """Return a number from 1 to `MAX_PROCESSES`, or `AUTO`."""
    text = str(value).strip()
    if text == AUTO:
        return AUTO
    if isinstance(value, bool) or not text.isascii() or not text.isdecimal() or not 1 <= int(text[:9]) <= MAX_PROCESSES:
        msg = f"must be a number from 1 to {MAX_PROCESSES}, or {AUTO}"
        raise ValueError(msg)
    return int(text)


Processes = Annotated[int | Literal["auto"], BeforeValidator(_parse_processes)]


def count_processes(wanted: int | Literal["auto"], slots: int, cores: int | None = None) -> int:
    """Return the number of processes; by `AUTO` one for each dozen `cores`, and no more than slots."""
    if wanted != AUTO:
        return wanted
    found = cores or len(os.sched_getaffinity(0))
    return min(-(-found // CORES_A_PROCESS), slots)
