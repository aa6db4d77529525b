"""One cgroup a sandbox, made and owned by the worker, on cgroup v1 and v2.

runsc runs with ``--ignore-cgroups`` inside it, because runsc's own cgroups are gone before their
counters can be read.
"""

from __future__ import annotations

import errno
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import HostResources
from sandfleet_config.units import CPU_PERIOD_MICROSECONDS

from sandfleet_worker.sandbox.cgroup.counters import Counters
from sandfleet_worker.sandbox.cgroup.tree import write_existing, write_quietly
from sandfleet_worker.system.processes import kill_processes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sandfleet_worker.sandbox.cgroup.tree import CgroupTree
    from sandfleet_worker.sandbox.policy import Admitted

PIDS_FUSE_FACTOR = 4
PIDS_FUSE_BASE = 256
"""Host tasks that a sandbox may have: a guest thread may be several host threads, and the sentry
has some of its own.
"""

REMOVE_DEADLINE_SECONDS = 5.0
FIRST_REMOVE_PAUSE_SECONDS = 0.001
KILL_PAUSE_SECONDS = 0.008
"""From this pause on, each try also kills the members: to read them costs as much as a try."""


def limit_files(
    version: int, limits: Admitted, *, is_fresh: bool = False, was_slowed: bool = False
) -> list[tuple[str, str, str, bool]]:
    """Return the files to write: (controller, file, text, is needed).

    A failed write of a needed one means that the limit is not enforced. `is_fresh`: no limit was
    ever set. `was_slowed`: a CPU quota was set before.
    """
    fuse = str(PIDS_FUSE_FACTOR * limits.pids_limit + PIDS_FUSE_BASE)
    if version == 1:
        memory = memory_files(version, limits.memory_bytes)
        files = [*(memory[1:] if is_fresh else memory), ("pids", "pids.max", fuse, True)]
    else:
        files = [*memory_files(version, limits.memory_bytes), ("pids", "pids.max", fuse, True)]
    if limits.cpu_quota or was_slowed:
        files += cpu_files(version, limits.cpu_quota)
    return files


def cpu_files(version: int, quota: int) -> list[tuple[str, str, str, bool]]:
    """Return the files to write for a CPU quota in microseconds per 100 ms, as `limit_files`.

    0: none. The kernel resumes tasks that the quota before has stopped at once
    (`tg_set_cfs_bandwidth` in kernel/sched/core.c).
    """
    if version == 1:
        return [
            ("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_MICROSECONDS), True),
            ("cpu", "cpu.cfs_quota_us", str(quota or -1), True),
        ]
    return [("cpu", "cpu.max", f"{quota or 'max'} {CPU_PERIOD_MICROSECONDS}", True)]


def memory_files(version: int, memory_bytes: int) -> list[tuple[str, str, str, bool]]:
    """Return the files to write for a memory limit, as `limit_files`.

    Their order works to raise the limit and to lower it.
    """
    memory = str(memory_bytes)
    if version == 1:
        return [
            # memsw may never be the smaller one: it is raised first, which a new cgroup does not
            # need. Both are absent if the kernel does not account swap. Then the host has no swap,
            # or a cgroup cannot use it.
            ("memory", "memory.memsw.limit_in_bytes", "-1", False),
            ("memory", "memory.limit_in_bytes", memory, True),
            ("memory", "memory.memsw.limit_in_bytes", memory, False),
        ]
    return [
        ("memory", "memory.max", memory, True),
        ("memory", "memory.swap.max", "0", False),
        # Kill the sandbox as a whole: a sentry without its stubs is useless, and so are stubs
        # without a sentry.
        ("memory", "memory.oom.group", "1", False),
    ]


class SandboxCgroup:
    """The cgroup of one sandbox, on every controller.

    `remove` can meet: tasks that still die (EBUSY, retried), tasks that must be killed first, a
    folder that is gone.
    """

    def __init__(self, tree: CgroupTree, name: str) -> None:
        self._tree = tree
        # Text, not paths, here and wherever `_distinct` is used: with pathlib a system call costs
        # twice as much.
        self._names = {controller: f"{parent}/{name}" for controller, parent in tree.parents.items()}
        self._distinct = list(dict.fromkeys(self._names.values()))
        self.counters = Counters(tree.version, self._names)
        self.enforced: frozenset[str] = frozenset()
        self._has_quota = False

    @property
    def procs_files(self) -> list[str]:
        """The files to enter the cgroup by: one on v2, one a controller on v1."""
        return [f"{folder}/cgroup.procs" for folder in self._distinct]

    def make(self) -> None:
        """Make the folders, without limits yet.

        Raises:
            HostResources: the kernel refused to make the cgroup.
        """
        try:
            for folder in self._distinct:
                os.mkdir(folder)  # noqa: PTH102
        except OSError as error:
            self.remove()
            msg = f"cannot make the sandbox's cgroup: {error.strerror} ({error.filename})"
            raise HostResources.of(msg) from error

    def limit_memory(self, memory_bytes: int) -> bool:
        """Limit the memory of a sandbox that has no job yet; `apply` sets a job's limits.

        Return whether that is enforced.
        """
        return not self._write(memory_files(self._tree.version, memory_bytes)) and "memory" in self._tree.enforceable

    def slow_down(self, quota: int) -> bool:
        """Give a sandbox without a job at most `quota` microseconds of CPU per 100 ms.

        Return whether that is enforced. `apply` sets the job's own quota, or none.
        """
        self._has_quota = True
        return "cpu" in self._tree.enforceable and not self._write(cpu_files(self._tree.version, quota))

    def apply(self, limits: Admitted, *, is_fresh: bool = False) -> None:
        """Set `limits`, and count from now on.

        `is_fresh` says that no sandbox has run inside, and no limit was set. Afterwards
        `enforced` names the limits that are in force.
        """
        files = limit_files(self._tree.version, limits, is_fresh=is_fresh, was_slowed=self._has_quota)
        self._has_quota = self._has_quota or bool(limits.cpu_quota)
        self.enforced = frozenset(self._tree.enforceable - self._write(files))
        self.counters.start(limits.memory_bytes, is_fresh=is_fresh)

    def _write(self, files: Iterable[tuple[str, str, str, bool]]) -> set[str]:
        """Write `files`, and return the controllers of which a needed write failed."""
        failed: set[str] = set()
        for controller, file, text, is_needed in files:
            folder = self._names.get(controller)
            if folder is not None and not write_quietly(f"{folder}/{file}", text) and is_needed:
                failed.add(controller)
        return failed

    def kill(self) -> None:
        """Send SIGKILL to every process inside, and lift its CPU quota, under which it would die slowly."""
        if self._has_quota:
            self._write(cpu_files(self._tree.version, 0))
        kill_members(self._distinct)

    def remove(self) -> None:
        """Kill the processes inside and remove the folders, which may be gone already.

        Raises:
            HostResources: a process does not die (it hangs in the kernel); try again later.
        """
        self.counters.close()
        remove_cgroups(self._distinct)


def kill_members(folders: Iterable[Path | str]) -> bool:
    """SIGKILL every process in `folders`; return whether there was one."""
    found = False
    for folder in folders:
        pids = read_members(folder)
        found = found or bool(pids)
        # cgroup v2 since Linux 5.14: kills all at once, and no new child escapes.
        if pids and not write_existing(f"{folder}/cgroup.kill", "1"):
            kill_processes(pids, partial(read_members, folder))
    return found


def read_members(folder: Path | str) -> set[int]:
    """Return the processes in a cgroup; 0 stands for those of another pid namespace."""
    try:
        return {int(line) for line in Path(folder, "cgroup.procs").read_text().split()}
    except OSError:
        return set()


def remove_cgroups(folders: Iterable[Path | str]) -> None:
    """Remove `folders` (a sandbox's cgroup on each controller), and kill the processes inside.

    Raises:
        HostResources: a folder stays busy past the deadline; all others are gone.
    """
    deadline = time.monotonic() + REMOVE_DEADLINE_SECONDS
    folders = list(folders)
    faults = [fault for folder in folders if (fault := _remove_cgroup(folder, deadline, folders))]
    if faults:
        raise HostResources.of("; ".join(faults))


def _lift_quotas(folders: Iterable[Path | str]) -> None:
    """Lift the CPU quota of a sandbox that is to die: it would take its time to die, too."""
    for folder in folders:
        if not write_existing(f"{folder}/cpu.cfs_quota_us", "-1"):
            write_existing(f"{folder}/cpu.max", "max")


def _remove_cgroup(folder: Path | str, deadline: float, all_folders: Sequence[Path | str]) -> str:
    """Remove one of a sandbox's folders; return why it is still there, empty if it is gone."""
    pause = FIRST_REMOVE_PAUSE_SECONDS
    while True:
        try:
            os.rmdir(folder)  # noqa: PTH106
        except FileNotFoundError:
            return ""
        except OSError as error:
            # A killed process stays a member until it is reaped, some ms after its exit.
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                return f"cannot remove the cgroup {folder}: {error.strerror}"
        else:
            return ""
        # The processes that were killed with their sandbox mostly end within some ms.
        if pause >= KILL_PAUSE_SECONDS:
            _lift_quotas(all_folders)
            kill_members([folder])
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
