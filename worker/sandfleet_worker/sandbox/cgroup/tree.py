"""The cgroup controllers that we may use, and the parents of sandboxes' cgroups, on v1 and v2."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

log = logging.getLogger(__name__)

CGROUP_ROOT = Path("/sys/fs/cgroup")
V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
V2_CONTROLLERS = ("memory", "pids", "cpu")


@dataclass(frozen=True)
class CgroupTree:
    """The parent folder of sandboxes' cgroups for each controller.

    On v2 all controllers share one folder.
    """

    version: int
    parents: Mapping[str, Path]

    @property
    def enforceable(self) -> frozenset[str]:
        """The limits that this tree can enforce, of memory, cpu, pids."""
        return frozenset(self.parents) & {"memory", "cpu", "pids"}


def parse_v1_mounts(mountinfo: str) -> dict[str, Path]:
    """Map each v1 controller of ``/proc/self/mountinfo`` to its mount point.

    The optional fields of a line end at ``-`` (proc(5)).
    """
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
    """Find or make our parent cgroups; leave out controllers whose folder cannot be written."""
    if (root / "cgroup.controllers").exists():
        return _find_v2(parent, root)
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    parents: dict[str, Path] = {}
    for controller, mount_point in parse_v1_mounts(text).items():
        folder = mount_point / parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if controller == "memory":
                # The parent must keep the charges of a removed child. It is the default on hybrid
                # hosts, too.
                write_quietly(folder / "memory.use_hierarchy", "1")
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
    """Enable every controller one level below.

    One write for each: a missing controller must not disable the others.
    """
    available = (folder / "cgroup.controllers").read_text().split()
    enabled = (folder / "cgroup.subtree_control").read_text().split()
    for controller in V2_CONTROLLERS:
        if controller in available and controller not in enabled:
            write_quietly(folder / "cgroup.subtree_control", f"+{controller}")


def write_existing(path: str, text: str) -> bool:
    """Write `text` to a file that may not exist.

    Return False if it does not, or cannot be written.
    """
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)
    except OSError:
        return False
    return True


def write_quietly(path: Path | str, text: str) -> bool:
    """Write `text`; return False, and log why, if that fails."""
    # Plain system calls here and in cgroup.py: each job makes some thirty of them, and pathlib
    # costs five times as much.
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
