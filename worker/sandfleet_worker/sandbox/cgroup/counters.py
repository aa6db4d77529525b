"""The kernel's counts in a sandbox's cgroup since its job came, and its usage, on v1 and v2.

Which limit was hit? The kernel counts a process that it kills for memory in the cgroup of the
*killed* process, whether that cgroup's own limit was hit, a parent's, or the host's memory. So a
second count tells whether the sandbox's own limit was hit:

* v2: `oom` of memory.events.local, the times that this very cgroup was at its limit and an
  allocation was about to fail
  (cgroup-v2.rst).
* v1: OOM notifications. A cgroup is notified of its own OOMs and its ancestors', its parent only of
  the ancestors' (measured on
  6.18): the difference is its own. memory.failcnt does not help: it stays 0. Without notifications
  the peak decides.

The same holds for processes: v1, and v2 of older kernels, count a refused fork in the cgroup that
forked, whichever limit was hit. Kernels with `pids.events.local` (6.12 has it) count it in the
cgroup whose limit was hit (`pids_event` in kernel/cgroup/pids.c), so there the ancestors' are read,
too.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandfleet_config.outcome import Usage

from sandfleet_worker.sandbox.cgroup.oom_events import open_oom_eventfd, read_oom_events
from sandfleet_worker.sandbox.cgroup.tree import write_quietly
from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Mapping

READ_BYTES = 1 << 16
"""Longer than any file that is read here."""

DESCRIPTOR_WAIT_SECONDS = 5.0

PEAK_MARGIN_BYTES = 1 << 20
"""The kernel charges memory in batches of some pages a core: a cgroup at its limit may show a peak
slightly below.
"""


@dataclass(frozen=True)
class Counts:
    """Events in a sandbox's cgroup."""

    oom_kills: int = 0
    """Processes that the kernel killed here for memory, whichever limit was hit."""
    own_ooms: int = 0
    """Times that the sandbox's own memory limit was hit and nothing could be reclaimed."""
    fork_failures: int = 0
    """Forks that the host refused here, whichever limit was hit."""
    pids_fuse_hits: int = 0
    """Forks that the sandbox's own limit refused."""


class Counters:
    """The counters of one sandbox's cgroup.

    `folders` maps each controller to the sandbox's folder there.
    """

    def __init__(self, version: int, folders: Mapping[str, str]) -> None:
        self._version, self._folders = version, folders
        self._before = Counts()
        self._memory_bytes = 0
        self._own_oom_fd = self._parent_oom_fd = self._peak_fd = -1
        self._own_ooms = 0

    def start(self, memory_bytes: int, *, is_fresh: bool = False) -> None:
        """Count from now on, for a job that may use `memory_bytes`.

        `is_fresh` says that no sandbox has run in the cgroup yet.
        """
        self.close()
        self._memory_bytes, self._own_ooms = memory_bytes, 0
        if self._version == 1 and "memory" in self._folders:
            self._count_ooms(self._folders["memory"])
        refused_above = self._read_refusals_above()
        own = 0 if is_fresh else self._read_own_refusals()
        self._before = Counts(
            oom_kills=0 if is_fresh else self._read_oom_kills(),
            own_ooms=0 if is_fresh else self._read_v2_ooms(),
            fork_failures=own + refused_above,
            pids_fuse_hits=own,
        )

    def read_end(self) -> tuple[Counts, Usage]:
        """Return the events since `start`, and the usage; call it once, when the sandbox has ended.

        Without them nobody can say why the job ended. So it waits for a descriptor if there is none.

        Raises:
            OSError: there is none for `DESCRIPTOR_WAIT_SECONDS`.
        """
        deadline = time.monotonic() + DESCRIPTOR_WAIT_SECONDS
        while True:
            try:
                usage = self.usage()
                return self.read(), usage
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)

    def read(self) -> Counts:
        """Return the events since `start`; call it when the sandbox has ended."""
        oom_kills = self._read_oom_kills() - self._before.oom_kills
        refused = self._read_own_refusals()
        own = refused - self._before.pids_fuse_hits
        fork_failures = refused + self._read_refusals_above() - self._before.fork_failures
        pids_fuse_hits = own if own and self._was_pids_limit_reached() else 0
        own_ooms = self.count_own_ooms() if oom_kills else 0
        return Counts(oom_kills, own_ooms, fork_failures, pids_fuse_hits)

    @property
    def has_oom_kill(self) -> bool:
        """Whether the kernel has ever killed here for memory; False if no descriptor is left to ask."""
        try:
            return self._read_oom_kills() > 0
        except OSError:
            return False

    def usage(self) -> Usage:
        """Read how much CPU, memory and processes the sandbox has used so far."""
        if self._version == 1:
            cpu = self._read_number("cpuacct", "cpuacct.usage")
            return Usage(
                cpu_seconds=None if cpu is None else cpu / 1e9,
                memory_peak_bytes=self._read_number("memory", "memory.max_usage_in_bytes"),
                pids_peak=self._read_number("pids", "pids.peak"),
            )
        cpu = self._read_field("cpu", "cpu.stat", "usage_usec") if "cpu" in self._folders else None
        return Usage(
            cpu_seconds=None if cpu is None else cpu / 1e6,
            memory_peak_bytes=self._read_peak(),
            pids_peak=self._read_number("pids", "pids.peak"),
        )

    def restart_peak(self) -> None:
        """Begin a new peak of memory, for a sandbox that did something before its job came.

        On v1 any write does. On v2 the kernel (6.12 or later) keeps the new peak for the descriptor
        that was written to. On older ones the old peak stays.
        """
        if self._version == 1:
            write_quietly(f"{self._folders.get('memory', '')}/memory.max_usage_in_bytes", "0")
            return
        try:
            self._peak_fd = os.open(f"{self._folders['memory']}/memory.peak", os.O_RDWR | os.O_CLOEXEC)
            os.write(self._peak_fd, b"0")
        except (KeyError, OSError):
            self._close_peak()

    def read_cpu_seconds(self) -> float | None:
        """Read how much CPU the sandbox has used so far; None if no descriptor is left to ask."""
        try:
            return self.usage().cpu_seconds
        except OSError:
            return None

    def read_memory_bytes(self) -> tuple[int, int] | None:
        """Read the memory in use now: all of it, and without the page cache of files.

        None if the kernel does not say, or no descriptor is left to ask.
        """
        file = "memory.usage_in_bytes" if self._version == 1 else "memory.current"
        try:
            used = self._read_number("memory", file)
            parts = [self._read_field("memory", "memory.stat", f"{kind}_file") for kind in ("active", "inactive")]
        except OSError:
            return None
        if used is None or None in parts:
            return None
        return used, max(0, used - sum(part or 0 for part in parts))

    def close(self) -> None:
        """Close the notifications and the peak; idempotent."""
        self._close_peak()
        for eventfd in (self._own_oom_fd, self._parent_oom_fd):
            if eventfd >= 0:
                os.close(eventfd)
        self._own_oom_fd = self._parent_oom_fd = -1

    def _read_peak(self) -> int | None:
        if self._peak_fd < 0:
            return self._read_number("memory", "memory.peak")
        try:
            return int(os.pread(self._peak_fd, READ_BYTES, 0))
        except (OSError, ValueError):
            return None

    def _close_peak(self) -> None:
        if self._peak_fd >= 0:
            os.close(self._peak_fd)
        self._peak_fd = -1

    def _count_ooms(self, folder: str) -> None:
        try:
            # The parent first: an OOM between the two then counts as an ancestor's, never as the
            # job's.
            self._parent_oom_fd = open_oom_eventfd(os.path.dirname(folder))  # noqa: PTH120  text as everywhere here
            self._own_oom_fd = open_oom_eventfd(folder)
        except OSError:  # no descriptor left, or a kernel without notifications: the peak decides
            self.close()

    def _read_oom_kills(self) -> int:
        if self._version == 1:
            return self._read_field("memory", "memory.oom_control", "oom_kill") or 0
        return self._read_memory_event("oom_kill")

    def _read_v2_ooms(self) -> int:
        return self._read_memory_event("oom") if self._version != 1 else 0

    def _read_memory_event(self, field: str) -> int:
        # Kernels before 5.3 have only memory.events, which is the same for a cgroup without
        # children, as ours is.
        local = self._read_field("memory", "memory.events.local", field)
        return (self._read_field("memory", "memory.events", field) or 0) if local is None else local

    def count_own_ooms(self) -> int:
        """Return how often the sandbox's own memory limit was hit since `start`."""
        if self._version != 1:
            return self._read_v2_ooms() - self._before.own_ooms
        if self._own_oom_fd < 0:
            peak = self._read_number("memory", "memory.max_usage_in_bytes")
            return int(peak is None or peak >= self._memory_bytes - PEAK_MARGIN_BYTES)
        self._own_ooms += read_oom_events(self._own_oom_fd) - read_oom_events(self._parent_oom_fd)
        return max(0, self._own_ooms)

    def _read_own_refusals(self) -> int:
        return self._read_field("pids", "pids.events", "max") or 0

    def _read_refusals_above(self) -> int:
        """Return the forks that the limits of all ancestors refused, those of other jobs included.

        0 where the kernel counts them in the cgroup that forked.
        """
        total, folder = 0, self._folders.get("pids", "") if self._version != 1 else ""
        while folder := os.path.dirname(folder):  # noqa: PTH120  text as everywhere here
            found = _find_field(_read_file(f"{folder}/pids.events.local"), "max")
            if found is None:
                break  # the root, or an older kernel
            total += found
        return total

    def _was_pids_limit_reached(self) -> bool:
        peak, limit = self._read_number("pids", "pids.peak"), self._read_number("pids", "pids.max")
        return peak is None or limit is None or peak >= limit  # kernels before 6.1 have no peak

    def _read_text(self, controller: str, file: str) -> str:
        folder = self._folders.get(controller)
        return "" if folder is None else _read_file(f"{folder}/{file}")

    def _read_number(self, controller: str, file: str) -> int | None:
        text = self._read_text(controller, file).strip()
        return int(text) if text.isdecimal() else None

    def _read_field(self, controller: str, file: str, field: str) -> int | None:
        return _find_field(self._read_text(controller, file), field)


def _read_file(path: str) -> str:
    """Return the text of a file; empty where the kernel is older than it: no figure is guessed.

    Raises:
        OSError: the host has no descriptor or memory left to ask.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if is_resource_error(error):
            raise
        return ""
    try:
        return os.read(descriptor, READ_BYTES).decode()
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _find_field(text: str, field: str) -> int | None:
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if name == field and value.strip().isdecimal():
            return int(value)
    return None
