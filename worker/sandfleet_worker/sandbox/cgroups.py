"""One cgroup a sandbox, made and owned by the worker, on cgroup v1 and v2.

runsc runs with ``--ignore-cgroups`` inside it: runsc's own cgroups are gone before their counters can be read.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import HostResources
from sandfleet_config.outcome import Usage

from sandfleet_worker.policy import CPU_PERIOD_MICROSECONDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandfleet_worker.policy import Admitted

log = logging.getLogger(__name__)

CGROUP_ROOT = Path("/sys/fs/cgroup")
PIDS_FUSE_FACTOR = 4
PIDS_FUSE_BASE = 256
"""Host tasks a sandbox may have: guest threads are not host threads one to one, and the sentry needs some of its own."""

REMOVE_DEADLINE_SECONDS = 5.0
FIRST_REMOVE_PAUSE_SECONDS = 0.001
READ_BYTES = 1 << 16
"""More than any file we read has."""
V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
V2_CONTROLLERS = ("memory", "pids", "cpu")


@dataclass(frozen=True)
class CgroupTree:
    """Where sandboxes' cgroups go on this host: controller -> folder of ours. On v2 all controllers share one folder."""

    version: int
    parents: Mapping[str, Path]

    @property
    def enforceable(self) -> frozenset[str]:
        """The limits this tree can hold a job to: of memory, cpu, pids."""
        return frozenset(self.parents) & {"memory", "cpu", "pids"}


def parse_v1_mounts(mountinfo: str) -> dict[str, Path]:
    """Map each v1 controller of ``/proc/self/mountinfo`` to its mount point (proc(5): optional fields end at ``-``)."""
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2) if right.count(" ") >= 2 else ("", "", "")  # noqa: PLR2004
        if kind == "cgroup":
            mount_point = Path(left.split(" ")[4])
            for option in options.split(","):
                if option in V1_CONTROLLERS:
                    found.setdefault(option, mount_point)
    return found


def find_tree(parent: str, root: Path = CGROUP_ROOT, mountinfo: str | None = None) -> CgroupTree:
    """Find or make our parent cgroups; what cannot be written is left out, and the tree says so."""
    if (root / "cgroup.controllers").exists():
        return _find_v2(parent, root)
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    parents: dict[str, Path] = {}
    for controller, mount_point in parse_v1_mounts(text).items():
        folder = mount_point / parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if controller == "memory":
                # Charges of a removed child must not vanish from the parent; also the default on hybrid hosts.
                _write_quietly(folder / "memory.use_hierarchy", "1")
        except OSError as error:
            log.debug("cgroup v1 controller %s cannot be used: %s", controller, error)
            continue
        if os.access(folder, os.W_OK):
            parents[controller] = folder
    return CgroupTree(version=1, parents=parents)


def _find_v2(parent: str, root: Path) -> CgroupTree:
    folder = root
    try:
        for part in Path(parent).parts:
            _delegate(folder)
            folder /= part
            folder.mkdir(exist_ok=True)
        _delegate(folder)
        granted = (folder / "cgroup.subtree_control").read_text().split()
    except OSError as error:
        log.debug("cgroup v2 folder %s cannot be used: %s", folder, error)
        return CgroupTree(version=2, parents={})
    return CgroupTree(version=2, parents={name: folder for name in V2_CONTROLLERS if name in granted})


def _delegate(folder: Path) -> None:
    """Hand every controller down one level, each by itself: one that is missing must not cost the others."""
    available = (folder / "cgroup.controllers").read_text().split()
    enabled = (folder / "cgroup.subtree_control").read_text().split()
    for controller in V2_CONTROLLERS:
        if controller in available and controller not in enabled:
            _write_quietly(folder / "cgroup.subtree_control", f"+{controller}")


def _write_quietly(path: Path | str, text: str) -> bool:
    # Plain system calls here and in `_read_text`: each job takes some thirty of them, and pathlib makes each five times as dear.
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)
    except OSError as error:
        log.debug("cannot write %r to %s: %s", text, path, error)
        return False
    return True


def limit_files(version: int, limits: Admitted) -> list[tuple[str, str, str, bool]]:
    """Return what to write: (controller, file, text, whether a failure means the limit does not hold)."""
    fuse = str(PIDS_FUSE_FACTOR * limits.pids_limit + PIDS_FUSE_BASE)
    if version == 1:
        files = [*memory_files(version, limits.memory_bytes), ("pids", "pids.max", fuse, True)]
        if limits.cpu_quota:
            files += [
                ("cpu", "cpu.cfs_period_us", str(CPU_PERIOD_MICROSECONDS), True),
                ("cpu", "cpu.cfs_quota_us", str(limits.cpu_quota), True),
            ]
        return files
    files = [*memory_files(version, limits.memory_bytes), ("pids", "pids.max", fuse, True)]
    if limits.cpu_quota:
        files.append(("cpu", "cpu.max", f"{limits.cpu_quota} {CPU_PERIOD_MICROSECONDS}", True))
    return files


def memory_files(version: int, memory_bytes: int) -> list[tuple[str, str, str, bool]]:
    """Return what to write for a memory limit, in an order that takes it up as well as down; as `limit_files`."""
    memory = str(memory_bytes)
    if version == 1:
        return [
            # memsw may never be the smaller one. Both are absent where the kernel does not account swap: then there is no swap
            # to escape to, or the host has none.
            ("memory", "memory.memsw.limit_in_bytes", "-1", False),
            ("memory", "memory.limit_in_bytes", memory, True),
            ("memory", "memory.memsw.limit_in_bytes", memory, False),
        ]
    return [
        ("memory", "memory.max", memory, True),
        ("memory", "memory.swap.max", "0", False),
        # The sandbox dies as a whole: a sentry without its stubs, or the reverse, is of no use to anybody.
        ("memory", "memory.oom.group", "1", False),
    ]


class SandboxCgroup:
    """The cgroup of one sandbox, on every controller; a context manager whose end leaves nothing.

    Clean-up can meet: tasks still dying (EBUSY, retried), tasks that must be killed first, a folder already gone.
    """

    def __init__(self, tree: CgroupTree, name: str) -> None:
        self._tree = tree
        # Text, not paths, here and where `_distinct` goes: pathlib makes a system call twice as dear.
        self._names = {controller: f"{parent}/{name}" for controller, parent in tree.parents.items()}
        self._distinct = list(dict.fromkeys(self._names.values()))
        self.enforced: frozenset[str] = frozenset()

    @property
    def procs_files(self) -> list[str]:
        """The files through which a process enters: one on v2, one a controller on v1."""
        return [f"{folder}/cgroup.procs" for folder in self._distinct]

    def make(self) -> None:
        """Make the folders, without limits yet.

        Raises:
            HostResources: the kernel would not make the cgroup.
        """
        try:
            for folder in self._distinct:
                os.mkdir(folder)  # noqa: PTH102
        except OSError as error:
            self.remove()
            msg = f"cannot make the sandbox's cgroup: {error.strerror} ({error.filename})"
            raise HostResources.of(msg) from error

    def limit_memory(self, memory_bytes: int) -> None:
        """Bound the memory until there is a job; what a job is held to, and whether that holds, is `apply`'s."""
        self._write(memory_files(self._tree.version, memory_bytes))

    def apply(self, limits: Admitted) -> None:
        """Write `limits`; afterwards `enforced` names those that hold."""
        self.enforced = frozenset(self._tree.enforceable - self._write(limit_files(self._tree.version, limits)))

    def _write(self, files: Iterable[tuple[str, str, str, bool]]) -> set[str]:
        """Write `files`, and return the controllers of which one that is needed failed."""
        failed: set[str] = set()
        for controller, file, text, is_needed in files:
            folder = self._names.get(controller)
            if folder is not None and not _write_quietly(f"{folder}/{file}", text) and is_needed:
                failed.add(controller)
        return failed

    def oom_kills(self) -> int:
        """Count the processes the kernel killed here for memory."""
        if self._tree.version == 1:
            return self._read_field("memory", "memory.oom_control", "oom_kill")
        return self._read_field("memory", "memory.events", "oom_kill")

    def pids_fuse_hits(self) -> int:
        """Count the forks the host refused here."""
        return self._read_field("pids", "pids.events", "max")

    def usage(self) -> Usage:
        """Read what the sandbox used so far."""
        if self._tree.version == 1:
            cpu = self._read_number("cpuacct", "cpuacct.usage")
            return Usage(
                cpu_seconds=None if cpu is None else cpu / 1e9,
                memory_peak_bytes=self._read_number("memory", "memory.max_usage_in_bytes"),
                pids_peak=self._read_number("pids", "pids.peak"),
            )
        cpu = self._read_field("cpu", "cpu.stat", "usage_usec") if "cpu" in self._names else None
        return Usage(
            cpu_seconds=None if cpu is None else cpu / 1e6,
            memory_peak_bytes=self._read_number("memory", "memory.peak"),
            pids_peak=self._read_number("pids", "pids.peak"),
        )

    def _read_text(self, controller: str, file: str) -> str:
        folder = self._names.get(controller)
        if folder is None:
            return ""
        try:
            descriptor = os.open(f"{folder}/{file}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""  # the kernel is older than the file: the figure is null, never a guess
        try:
            return os.read(descriptor, READ_BYTES).decode()
        except OSError:
            return ""
        finally:
            os.close(descriptor)

    def _read_number(self, controller: str, file: str) -> int | None:
        text = self._read_text(controller, file).strip()
        return int(text) if text.isdecimal() else None

    def _read_field(self, controller: str, file: str, field: str) -> int:
        for line in self._read_text(controller, file).splitlines():
            name, _, value = line.partition(" ")
            if name == field and value.strip().isdecimal():
                return int(value)
        return 0

    def kill(self) -> None:
        """Send SIGKILL to every process inside."""
        kill_members(self._distinct)

    def remove(self) -> None:
        """Kill what is left inside and remove the folders; fine when they are gone already.

        Raises:
            HostResources: a process will not die (it hangs in the kernel); the janitor tries again later.
        """
        remove_cgroups(self._distinct)


def kill_members(folders: Iterable[Path | str]) -> bool:
    """SIGKILL every process in `folders`; return whether there was one."""
    found = False
    for folder in folders:
        with contextlib.suppress(OSError):
            for line in Path(folder, "cgroup.procs").read_text().split():
                found = True
                if line != "0":  # a process of another pid namespace shows as 0
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(line), signal.SIGKILL)
    return found


def remove_cgroups(folders: Iterable[Path | str]) -> None:
    """Remove `folders` (a sandbox's cgroup on each controller), killing what is inside.

    Raises:
        HostResources: a folder stays busy past the deadline.
    """
    deadline = time.monotonic() + REMOVE_DEADLINE_SECONDS
    for folder in folders:
        pause = FIRST_REMOVE_PAUSE_SECONDS
        while True:
            try:
                os.rmdir(folder)  # noqa: PTH106
                break
            except FileNotFoundError:
                break
            except OSError as error:
                # A killed process stays a member until it is reaped, some ms after its exit.
                if error.errno != errno.EBUSY or time.monotonic() > deadline:
                    msg = f"cannot remove the cgroup {folder}: {error.strerror}"
                    raise HostResources.of(msg) from error
            if pause > FIRST_REMOVE_PAUSE_SECONDS:  # what was killed with its sandbox has mostly ended by then
                kill_members([folder])
            time.sleep(pause)
            pause = min(pause * 2, 0.05)
