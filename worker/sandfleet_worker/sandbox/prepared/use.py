"""How often jobs fit a prepared spare, and why not; counted in one worker since its start."""

from __future__ import annotations

import threading
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_QUARANTINED: Final = 20
"""Most preparations in quarantine that are told by name."""


class Miss(StrEnum):
    """Why a job that could have had a prepared spare started without one."""

    NO_SPARE = "no_spare"
    """None was ready: the first jobs of a preparation, more jobs at once than spares, a busy host."""
    UNKNOWN = "unknown"
    """This host has no preparation of that name for the image."""
    COMMAND = "command"
    """It is no `python3` command, or has options of the interpreter."""
    ENVIRONMENT = "environment"
    """A variable that an interpreter reads at its start differs."""
    FILES = "files"
    """One of its files is read by Python when it starts."""
    USER = "user"
    """It runs as another user or with other groups."""
    MEMORY = "memory"
    """Its memory limit is too small for what is prepared."""
    ROOTFS = "rootfs"
    """Its root filesystem is writable."""
    INTERPRETER = "interpreter"
    """The image has no Python, or one that cannot be prepared."""
    HOST = "host"
    """The host cannot limit the CPU and memory of a preparation."""
    LOST = "lost"
    """A prepared spare failed when it was given the job."""
    QUARANTINE = "quarantine"
    """The preparation failed too often."""


class PreparedUse(NamedTuple):
    """The counts of a worker at one moment."""

    starts: int = 0
    """Jobs that started in a prepared spare."""
    misses: Mapping[str, int] = {}
    """Jobs that could have, by `Miss`."""
    quarantined: Mapping[str, str] = {}
    """The preparations in quarantine, ``IMAGE:NAME``, with the reason: text of the image's code."""


class PreparedCounts:
    """Counts starts and misses; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts = 0
        self._misses = dict.fromkeys(Miss, 0)

    def note_start(self) -> None:
        """Count a job that started in a prepared spare."""
        with self._lock:
            self._starts += 1

    def note_miss(self, reason: Miss) -> None:
        """Count a job that could have, but did not."""
        with self._lock:
            self._misses[reason] += 1

    def read(self, quarantined: Mapping[str, str] | None = None) -> PreparedUse:
        """Return the counts now, with the preparations that are in quarantine."""
        with self._lock:
            misses = {reason.value: count for reason, count in self._misses.items() if count}
            return PreparedUse(self._starts, misses, dict(list((quarantined or {}).items())[:MAX_QUARANTINED]))
