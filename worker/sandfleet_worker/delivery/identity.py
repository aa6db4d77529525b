"""The names of one run of a worker process."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Identity:
    """One run of a worker process.

    It has its host, its name for people, the owner of its claims in Redis, and its host's boot.
    """

    host: str
    worker: str
    owner: str
    boot: str = ""
    """Id of the host's boot: another one means that its power was cut, or that it was restarted.

    Empty is unknown.
    """

    @classmethod
    def new(cls, host: str) -> Identity:
        """Name this process; a process id used again is another owner."""
        return cls(host, f"{host}.{os.getpid()}", f"{host}:{os.getpid()}:{secrets.token_hex(6)}", _read_boot())


def _read_boot() -> str:
    """Return the id that the kernel drew when it booted (random(4)); empty where it has none."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""
