"""Options of a job, as they were typed, as fields of its spec."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

from sandfleet_config.errors import SpecInvalid
from sandfleet_config.units import CPU_PERIOD_MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import Sequence


def drop_unset(**fields: Any) -> dict[str, Any]:
    """Return the fields that are not None: the spec's defaults hold for the others."""
    return {name: value for name, value in fields.items() if value is not None}


def read_cores(cores: float) -> int:
    """Return cores as a CPU quota: microseconds in each 100 ms.

    Raises:
        SpecInvalid: it is not a number of cores.
    """
    if not math.isfinite(cores):
        raise SpecInvalid.of("--cpu: must be a number of cores, such as 0.5")
    quota = round(cores * CPU_PERIOD_MICROSECONDS)
    # Not 0 for a small number: 0 is the host's ceiling.
    return quota or (1 if cores > 0 else 0)


def read_env(items: Sequence[str]) -> list[str]:
    """Return ``KEY=VALUE`` items; ``KEY`` alone gets its value from this environment.

    Raises:
        SpecInvalid: it is not set there.
    """
    missing = [item for item in items if "=" not in item and item not in os.environ]
    if missing:
        raise SpecInvalid.of(f"--env {' '.join(missing)}: not set in this environment; give KEY=VALUE")
    return [item if "=" in item else f"{item}={os.environ[item]}" for item in items]


def read_limits(memory: str, pids: int, disk: str, timeout: float) -> dict[str, Any]:
    """Return the fields of ``--memory``, ``--pids``, ``--disk`` and ``--timeout``."""
    return {"resources": {"memory_bytes": memory, "pids_limit": pids, "disk_bytes": disk}, "timeout": timeout}


def read_security(user: str, *, is_writable: bool) -> dict[str, Any]:
    """Return the field of ``--user`` and ``--writable``."""
    return {"security": {"user": user, "read_only_rootfs": not is_writable}}


def read_output(max_bytes: str | None, keep: str, on_limit: str, *, store: bool, live: bool) -> dict[str, Any]:
    """Return field `output`: --max-output, --keep, --on-output-limit, --store-output and --live."""
    flags = drop_unset(store=store or None, live=live or None)
    return {"output": drop_unset(max_bytes=max_bytes or None, keep=keep, on_limit=on_limit) | flags}


def read_labels(items: Sequence[str], option: str = "--label") -> dict[str, str]:
    """Return ``key=value`` items as a dict.

    Raises:
        SpecInvalid: an item has no ``=``.
    """
    faulty = [item for item in items if "=" not in item]
    if faulty:
        raise SpecInvalid.of(f"{option} {' '.join(faulty)}: must be key=value")
    return dict(item.split("=", 1) for item in items)
