"""How much memory the jobs of this host may use together, and which limit bounds it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.cgroup.tree import CGROUP_ROOT, parse_v1_mounts
from sandfleet_worker.sandbox.warm.spare_memory import IDLE_MEMORY_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.cgroup.tree import CgroupTree

PERCENT, BUDGET_PERCENT = 100, 90
"""The rest is for the kernel, its page cache and the host's other programs."""
WORKER_BYTES = 64 << 20
"""Memory of one worker process: 40 to 66 MiB were measured."""
UNLIMITED_BYTES = 1 << 60
"""cgroup v1 writes a number near 2^63 where there is no limit."""


@dataclass(frozen=True)
class MemoryBudget:
    """The memory of a host as one worker finds it.

    `total_bytes` is for all jobs and workers, `own_bytes` of it for this worker. `bound` names the
    limit behind it, for people. `spares` is how many idle sandboxes are counted in `own_bytes`, and
    `prepared_bytes` is counted there for those that are prepared.
    """

    total_bytes: int
    own_bytes: int
    spares: int
    bound: str
    prepared_bytes: int = 0

    @property
    def job_bytes(self) -> int:
        """Memory that jobs may reserve where no other worker lives on the host."""
        return max(0, self.total_bytes - self.own_bytes)

    def lessen(self, lacking_bytes: int) -> MemoryBudget:
        """Return this with so many spares less that `lacking_bytes` more are left for jobs.

        Prepared spares lose their memory first. The result has no spare if that is not enough.
        """
        if not self.own_bytes:
            return self
        lacking = max(0, lacking_bytes)
        prepared = min(self.prepared_bytes, lacking)
        fewer = min(self.spares, -(-(lacking - prepared) // IDLE_MEMORY_BYTES))
        own = self.own_bytes - prepared - fewer * IDLE_MEMORY_BYTES
        left = self.prepared_bytes - prepared
        return replace(self, spares=self.spares - fewer, own_bytes=own, prepared_bytes=left)

    def describe(self) -> str:
        """Say for people which limit bounds it."""
        if not self.own_bytes:
            return f"set by {self.bound}"
        own = f"what the worker and its {self.spares} idle sandboxes may take"
        return f"{BUDGET_PERCENT} % of {self.bound} less {format_bytes(self.own_bytes)}, {own}"


def find_budget(
    tree: CgroupTree,
    *,
    spares: int,
    job_bytes: int,
    prepared_bytes: int = 0,
    given_bytes: int = 0,
    processes: int = 1,
    root: Path = CGROUP_ROOT,
    proc: Path = Path("/proc"),
) -> MemoryBudget:
    """Return the budget: `given_bytes`, or 90 % of the least limit.

    The limits are MemTotal and those of all cgroups around the sandboxes. `processes` workers take
    their own part.

    Of `spares`, as many are counted as fit beside one job of `job_bytes`, the largest that may
    come. Then `prepared_bytes` are, as far as they fit, too.
    """
    if given_bytes:
        return MemoryBudget(given_bytes, 0, spares, "SANDFLEET_MEMORY_BUDGET_BYTES", prepared_bytes)
    least, bound, has_worker = min(_find_limits(tree, root, proc))
    total = least * BUDGET_PERCENT // PERCENT
    worker = processes * WORKER_BYTES if has_worker else 0
    fitting = max(0, min(spares, (total - worker - job_bytes) // IDLE_MEMORY_BYTES))
    own = worker + fitting * IDLE_MEMORY_BYTES
    prepared = max(0, min(prepared_bytes, total - own - job_bytes))
    return MemoryBudget(total, own + prepared, fitting, bound, prepared)


def _find_limits(tree: CgroupTree, root: Path, proc: Path) -> Iterator[tuple[int, str, bool]]:
    """Yield each limit in bytes, its name for people, and whether this process is under it, too."""
    meminfo = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines() if ":" in line)
    yield int(meminfo["MemTotal"].split()[0]) << 10, "MemTotal", True
    top = root if tree.version != 1 else parse_v1_mounts((proc / "self/mountinfo").read_text()).get("memory")
    own = _find_own(tree.version, top, proc)
    folder = tree.parents.get("memory", own)
    file = "memory.max" if tree.version != 1 else "memory.limit_in_bytes"
    while folder is not None and top is not None and folder.is_relative_to(top):
        limit = _read_limit(folder / file)
        if limit < UNLIMITED_BYTES:
            # A container may see only its own cgroups: then the path of this process's own one does
            # not exist.
            yield int(limit), str(folder / file), own is None or not own.exists() or own.is_relative_to(folder)
        folder = folder.parent


def _find_own(version: int, top: Path | None, proc: Path) -> Path | None:
    """Return the memory cgroup of this process; `top` is where they are mounted."""
    for line in (proc / "self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if top is not None and (not controllers if version != 1 else "memory" in controllers.split(",")):
            return top / path.lstrip("/")
    return None


def _read_limit(path: Path) -> float:
    try:
        text = path.read_text().strip()
    except OSError:  # the root of a v2 tree has none, and a container may not see all
        return math.inf
    return int(text) if text.isdecimal() else math.inf
