"""Harms to a host and its workers, and their end.

They are: no descriptors, no disk, no memory, a step of the wall clock.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import struct
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from cgrouptree import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterable

CLOCK_SOURCE = Path(__file__).with_name("clock.c")


@dataclass
class Harm:
    """One harm, from when to when (Unix time), and its worker process; None is all of them.

    `jobs` bounds how many jobs it can have hit, where that is known.
    """

    what: str
    pid: int | None
    began: float = field(default_factory=time.time)
    ended: float = math.inf
    jobs: float = math.inf

    def end(self) -> None:
        self.ended = time.time()


class SmallDisk:
    """A filesystem of few MiB at `folder`, which a test can fill."""

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.folder = folder
        folder.mkdir()
        options = f"size={mebibytes}m,mode=0711"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "sandfleet-test", str(folder)], check=True)
        self._filler = folder / "filler"

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))

    def free(self) -> None:
        self._filler.unlink(missing_ok=True)

    def close(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class ParentMemory:
    """The memory of the cgroup in which all sandboxes' own are, on a v1 or a v2 tree."""

    def __init__(self, parent: str) -> None:
        v1 = ROOT / "memory" / parent
        self._limit, self._used = v1 / "memory.limit_in_bytes", v1 / "memory.usage_in_bytes"
        self._unlimited = "-1"
        if not v1.parent.is_dir():
            v2 = ROOT / parent
            self._limit, self._used, self._unlimited = v2 / "memory.max", v2 / "memory.current", "max"

    def press(self, spare_bytes: int) -> bool:
        """Limit the sandboxes to their use now plus so much; return if the kernel accepts it."""
        try:
            self._limit.write_text(str(int(self._used.read_text()) + spare_bytes))
        except OSError:  # no worker has made it yet, or it grew meanwhile (EBUSY)
            return False
        return True

    def release(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._limit.write_text(self._unlimited)


class SteppedClock:
    """A wall clock for some workers, which a test steps forward and back while they run."""

    def __init__(self, folder: Path) -> None:
        self._library, self._step = folder / "clock.so", folder / "clock-step"
        subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", self._library, CLOCK_SOURCE], check=True)
        self.step(0)

    @property
    def env(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self._library), "STEPPED_CLOCK_FILE": str(self._step)}

    def step(self, seconds: int) -> None:
        """Show `seconds` more than it is; processes that run see it at once."""
        with self._step.open("r+b" if self._step.exists() else "wb") as file:
            file.write(struct.pack("=q", seconds))


def take_descriptors(pid: int, limit: int | None = None) -> tuple[int, int] | None:
    """Let a process open no more descriptors; return its limit before, or None if it is gone.

    It may open one where it closes one; not even that with a low `limit`. poll(2) refuses more
    descriptors than the limit.
    """
    with contextlib.suppress(psutil.Error, OSError):
        before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        # The limit bounds numbers, not their count: the lowest free one is the next to be opened.
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (find_gap(pid) if limit is None else limit, before[1]))
        return before
    return None


def find_gap(pid: int) -> int:
    """Return the lowest number of a descriptor that the process has free."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}  # noqa: PTH208  names only
    return next(number for number in range(len(taken) + 1) if number not in taken)


def give_descriptors(pid: int, limits: tuple[int, int]) -> None:
    with contextlib.suppress(OSError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


def explain(attempts: Iterable[tuple[int, float, float]], harms: list[Harm], slack_seconds: float) -> list[int]:
    """Return the places of `attempts` (worker's process, begin, end) that no harm explains.

    Each harm explains at most `jobs`.

    A maximum matching: each attempt that is not matched yet looks for a harm with room, and asks
    those who have it to move.
    """
    spans = list(attempts)
    fits = [
        [
            number
            for number, harm in enumerate(harms)
            if harm.pid in {None, pid} and harm.began - slack_seconds <= end and begin <= harm.ended + slack_seconds
        ]
        for pid, begin, end in spans
    ]
    held: dict[int, list[int]] = {}

    def place(attempt: int, asked: set[int]) -> bool:
        for number in fits[attempt]:
            if number in asked:
                continue
            asked.add(number)
            holders = held.setdefault(number, [])
            if len(holders) < harms[number].jobs:
                holders.append(attempt)
                return True
            for at, other in enumerate(holders):
                if place(other, asked):
                    holders[at] = attempt
                    return True
        return False

    return [attempt for attempt in range(len(spans)) if not place(attempt, set())]
