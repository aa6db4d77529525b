"""Format and parse limits in the units that people type: KiB, cores, seconds.

Every message formats its limits here, so that a limit reads the same at submit, on the host and in
an outcome.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Final

CPU_PERIOD_MICROSECONDS: Final = 100_000
"""The period of a CPU quota: the contract counts microseconds of CPU in each 100 ms."""

_BINARY: Final = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
_DECIMAL: Final = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"))
_TIME_PARTS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_TIME_PART: Final = re.compile(r"(\d+(?:\.\d+)?)([dhms])")
_LONG_TIMES: Final = ((86400, "day"), (3600, "h"))


def format_bytes(count: int) -> str:
    """Return ``512 MiB``, ``64 GB`` or ``1000 bytes``; different sizes give different texts."""
    for units in (_BINARY, _DECIMAL):
        size, name = next(((size, name) for size, name in units if count >= size), (0, ""))
        if size and count * 100 % size == 0:
            return f"{_plain(count / size, 2)} {name}"
    about = next((f" (about {_plain(count / size, 1)} {name})" for size, name in _BINARY if count >= size), "")
    return f"{format_count(count, 'byte')}{about}"


def format_count(number: int, noun: str, many: str = "") -> str:
    """Return ``1 job`` or ``2 jobs``; `many` is the plural where it is not the noun with an s."""
    return f"{number} {choose_noun(number, noun, many)}"


def choose_noun(number: int, noun: str, many: str = "") -> str:
    """Return the noun for so many: as `format_count`, without the number."""
    return noun if number == 1 else many or f"{noun}s"


def format_cpu(quota: int) -> str:
    """Return `quota`, in microseconds of CPU in each 100 ms, as ``0.5 cores``."""
    cores = _plain(quota / CPU_PERIOD_MICROSECONDS, 5)
    return f"{cores} core" if cores == "1" else f"{cores} cores"


def format_seconds(seconds: float) -> str:
    """Return ``2.5 s``; whole hours and days are added: ``3600 s (1 h)``."""
    text = f"{Decimal(repr(float(seconds))):f}".removesuffix(".0") + " s"
    for size, name in _LONG_TIMES:
        if seconds >= size and seconds % size == 0:
            number = int(seconds // size)
            plural = "s" if name == "day" and number > 1 else ""
            return f"{text} ({number} {name}{plural})"
    return text


def parse_seconds(text: str) -> float:
    """Return the seconds of ``90``, ``90s``, ``1h30m`` or ``2d``.

    Raises:
        ValueError: it is no time; the message says how one is written.
    """
    typed = text.strip().lower()
    try:
        seconds = float(typed)
    except ValueError:
        parts = _TIME_PART.findall(typed)
        is_time = bool(parts) and "".join(map("".join, parts)) == typed
        seconds = sum(float(number) * _TIME_PARTS[unit] for number, unit in parts) if is_time else math.nan
    if seconds < 0:
        msg = "must not be negative"
        raise ValueError(msg)
    if not seconds < math.inf:  # nor is it true of `nan`
        msg = "must be seconds, or a time such as 90s, 45m, 1h30m or 2d"
        raise ValueError(msg)
    return seconds


def format_limit(field: str, value: float) -> str:
    """Return `value` with the unit of `field`, which a spec or the settings have."""
    name = field.rpartition(".")[2].lower()
    if name.endswith("bytes"):
        return format_bytes(int(value))
    if name == "cpu_quota":
        return f"{format_cpu(int(value))} (cpu_quota {int(value)})"
    if name in {"timeout", "grace", "queue_ttl"} or name.endswith("seconds"):
        return format_seconds(value)
    if name == "pids_limit":
        return f"{int(value)} processes and threads"
    return _plain(value, 6)


def _plain(number: float, digits: int) -> str:
    """Return `number` without an exponent and without trailing zeros."""
    text = f"{number:.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
