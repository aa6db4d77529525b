"""Measure CPU and memory of a process tree by a cgroup; rusage loses re-parented processes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sandbench.any_release import find_name

remove_cgroups = find_name("remove_cgroups", "sandbox.cgroup.cgroup", "sandbox.cgroups")
find_tree = find_name("find_tree", "sandbox.cgroup.tree", "sandbox.cgroup_tree")

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

MIB = 1 << 20


class Meter:
    """One cgroup below `parent` with the controllers for CPU and memory.

    A context manager: its end removes it.
    """

    def __init__(self, parent: str, name: str) -> None:
        tree = find_tree(parent)
        self._version = tree.version
        counting = ("cpuacct", "memory") if tree.version == 1 else ("cpu", "memory")
        self._folders = {key: tree.parents[key] / name for key in counting if key in tree.parents}
        if len(self._folders) < len(counting):
            raise RuntimeError(f"no cgroup can be made below {parent} for CPU and memory: run it as root on the host")

    def __enter__(self) -> Self:
        """Make the cgroup."""
        for folder in self._distinct:
            folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        """Kill the processes that are left inside, and remove it."""
        remove_cgroups(self._distinct)

    @property
    def _distinct(self) -> list[Path]:
        return list(dict.fromkeys(self._folders.values()))

    def wrap(self, command: Sequence[str]) -> list[str]:
        """Return `command` as one that enters the cgroup first.

        Entering takes some ms: time nothing that is wrapped.
        """
        enter = "".join(f"echo $$ > {folder}/cgroup.procs && " for folder in self._distinct)
        return ["sh", "-c", f'{enter}exec "$@"', "sh", *command]

    def read_cpu_seconds(self) -> float:
        """Return the CPU used inside so far."""
        if self._version == 1:
            return int((self._folders["cpuacct"] / "cpuacct.usage").read_text()) / 1e9
        lines = (self._folders["cpu"] / "cpu.stat").read_text().split()
        return int(lines[lines.index("usage_usec") + 1]) / 1e6

    def read_peak_mib(self) -> float:
        """Return the most memory that was used inside at once."""
        file = "memory.max_usage_in_bytes" if self._version == 1 else "memory.peak"
        return int((self._folders["memory"] / file).read_text()) / MIB
