"""Remove the sandboxes of workers that were killed.

Each runner owns one folder below runsc's root folder and holds a flock on a file in it for as long
as it lives. The kernel drops the lock with the process. A folder whose lock is free is stale, and
so are the processes and cgroups that it names. Containers that share the root folder share the
janitor, too. Cgroups are only removed through the folder that names them: a worker may see a host's
cgroup tree without the folders of other workers.

Invariant: so an owner's folder is removed last, and stays for the next sweep if anything that it
names could not be removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import HostResources

from sandfleet_worker.sandbox.cgroup.cgroup import remove_cgroups
from sandfleet_worker.sandbox.process.folders import remove_folder
from sandfleet_worker.system.processes import kill_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.cgroup.tree import CgroupTree

log = logging.getLogger(__name__)

OWNER_PREFIX = "sandfleet-"
LOCK_NAME = "owner.lock"
JANITOR_LOCK = "janitor.lock"
KILL_DEADLINE_SECONDS = 5.0


@dataclass(frozen=True)
class SweepReport:
    """How many owners, sandboxes and processes a sweep removed."""

    owners: int = 0
    sandboxes: int = 0
    processes: int = 0


class Ownership:
    """This runner's own folder, locked for its life."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.name = f"{OWNER_PREFIX}{secrets.token_hex(6)}"
        self.folder = root / self.name
        try:
            root.mkdir(mode=0o711, parents=True, exist_ok=True)
            # No sweep may run between the creation of the folder and its lock.
            with _locked(root / JANITOR_LOCK):
                self.folder.mkdir(mode=0o700)
                self._lock = os.open(self.folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            msg = f"cannot use {root} for sandbox state: {error.strerror}; set SANDFLEET_RUNSC__ROOT_DIR to a writable folder"
            raise HostResources.of(msg) from error

    def release(self, tree: CgroupTree) -> None:
        """Remove the folder and its lock. A later sweep removes sandboxes that are still in it."""
        try:
            with _locked(self._root / JANITOR_LOCK):
                if not any(_find_cgroups(self.name, tree)):
                    remove_folder(self.folder)
        except FileNotFoundError:
            pass
        except OSError as error:
            text = "%s stays for the next sweep: %s"
            log.warning(text, self.folder, error.strerror, extra={"action": "folder_left"})
        with contextlib.suppress(OSError):
            os.close(self._lock)


def sweep(root: Path, tree: CgroupTree) -> SweepReport:
    """Remove every sandbox whose owner is dead, safely beside live owners and other janitors."""
    owners = sandboxes = processes = 0
    if not root.is_dir():
        return SweepReport()
    with _locked(root / JANITOR_LOCK):
        for folder in sorted(root.glob(f"{OWNER_PREFIX}*")):
            try:
                if not folder.is_dir() or _is_alive(folder):
                    continue
                processes += _kill_processes(folder)
                sandboxes += _remove_sandboxes(folder, tree)
                if not any(_find_cgroups(folder.name, tree)):
                    remove_folder(folder)
                owners += 1
            except OSError as error:  # go on with the other owners
                text = "cannot clear %s: %s; the next sweep will try again"
                log.warning(text, folder, error, extra={"action": "folder_left"})
    if owners:
        log.info(
            "cleared %d sandboxes and %d processes of %d dead workers",
            sandboxes,
            processes,
            owners,
            extra={"action": "swept"},
        )
    return SweepReport(owners, sandboxes, processes)


def _is_alive(folder: Path) -> bool:
    """Whether some process holds the owner's lock."""
    try:
        lock = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except PermissionError:
        return True  # another user's: not ours to judge
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def _find_cgroups(owner: str, tree: CgroupTree) -> Iterator[Path]:
    """Yield the cgroups of an owner's sandboxes: one each on v2, one a controller on v1."""
    for parent in set(tree.parents.values()):
        yield from parent.glob(f"{owner}.*")


def _remove_sandboxes(folder: Path, tree: CgroupTree) -> int:
    # The worker may have died between the removal of the cgroup and of the folder, or before it
    # made the cgroup.
    names = {path.name for path in folder.glob(f"{folder.name}.*")}
    names |= {path.name for path in _find_cgroups(folder.name, tree)}
    for name in sorted(names):
        try:
            remove_cgroups({parent / name for parent in tree.parents.values()})
        except HostResources as error:
            log.warning("%s; the next sweep will try again", error.message, extra={"action": "cgroup_left"})
        remove_folder(folder / name)
    return len(names)


def _kill_processes(folder: Path) -> int:
    """SIGKILL the runsc processes whose state is below `folder`, until none is left.

    A host may have no cgroups.
    """
    mark = f"--root={folder}/"
    killed: set[int] = set()
    deadline = time.monotonic() + KILL_DEADLINE_SECONDS

    def find() -> set[int]:
        """Return the process ids."""
        return {process for process, command in _processes() if any(word.startswith(mark) for word in command)}

    # The next round finds a process that is dying or has started another one. A zombie has no
    # command line.
    while found := find():
        kill_processes(found, find)
        killed |= found
        if time.monotonic() > deadline:
            log.warning("%d processes will not die", len(found), extra={"action": "processes_left"})
            break
        time.sleep(0.005)
    return len(killed)


def _processes() -> Iterator[tuple[int, list[str]]]:
    for entry in os.scandir("/proc"):
        if entry.name.isdecimal():
            try:
                raw = Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue  # it ended meanwhile
            yield int(entry.name), raw.decode(errors="replace").split("\0")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
