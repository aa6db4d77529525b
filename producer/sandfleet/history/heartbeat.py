"""The sign of life of the process that writes the history, in the file that it holds locked.

It is not in the history itself, so that it can be written on a full disk: its bytes are there.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

SIZE: Final = 2048


@dataclass(frozen=True)
class Heartbeat:
    """The state of the writer at `at`; `head` is the number of the newest ended run of the fleet."""

    at: float = 0.0
    pid: int = 0
    head: int = 0
    lag_seconds: float = 0.0
    fault: str = ""


def lock_path(file: Path) -> Path:
    """Return the file that the writer of the history `file` holds locked."""
    return file.with_name(f"{file.name}.lock")


def encode_heartbeat(found: Heartbeat) -> bytes:
    """Return it in `SIZE` bytes."""
    text = json.dumps(asdict(found) | {"fault": found.fault[:200]})
    return text.encode().ljust(SIZE)


def read_heartbeat(file: Path) -> Heartbeat:
    """Read that of the history `file`; one that is not there, or cannot be read, is of long ago."""
    try:
        raw: object = json.loads(lock_path(file).read_bytes()[:SIZE])
    except (OSError, ValueError):
        return Heartbeat()
    if not isinstance(raw, dict):
        return Heartbeat()
    fields = cast("dict[str, Any]", raw)
    numbers = [fields.get(name) for name in ("at", "pid", "head", "lag_seconds")]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers):
        return Heartbeat()
    at, pid, head, lag = cast("list[float]", numbers)
    return Heartbeat(float(at), int(pid), int(head), float(lag), str(fields.get("fault") or ""))
