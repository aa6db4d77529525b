"""How many jobs and spares fit under the limit of open files and into this host's memory."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from sandfleet_config.settings import HostSettings, WorkerSettings

from sandfleet_worker.sandbox.memory_budget import MemoryBudget, find_budget
from sandfleet_worker.system.descriptors import DescriptorNeed, raise_limit

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.cgroup.tree import CgroupTree

log = logging.getLogger(__name__)


def fit_descriptors(config: HostSettings, boots: int) -> DescriptorNeed:
    """Raise the limit of open files; return how many spares fit under it beside `boots`."""
    # Only a worker's settings say how many jobs run at once. Otherwise count one: a job that gets
    # no descriptor says so.
    jobs, waiting = (config.concurrency, config.waiting_jobs) if isinstance(config, WorkerSettings) else (1, 0)
    wanted = DescriptorNeed(jobs, boots, config.warm.size, waiting)
    limit = raise_limit(wanted.total)
    fitting = wanted.fit(limit)
    if fitting.spares < wanted.spares:
        text = "open files are limited to %d: %d spare sandboxes instead of %d, which would need a limit of %d"
        _warn_of_fewer_spares(text, limit, fitting.spares, wanted.spares, wanted.total)
    return fitting


def fit_memory(config: HostSettings, tree: CgroupTree, spares: int, prepared_bytes: int = 0) -> MemoryBudget:
    """Return the memory of this host's jobs, and how many `spares` fit beside the largest job.

    Also how much of `prepared_bytes`, which prepared spares may hold beside the others.
    """
    is_worker = isinstance(config, WorkerSettings)
    found = find_budget(
        tree,
        spares=spares,
        prepared_bytes=prepared_bytes,
        job_bytes=config.policy.memory_bytes,
        given_bytes=config.memory_budget_bytes if isinstance(config, WorkerSettings) else 0,
        processes=config.process_count if isinstance(config, WorkerSettings) else 1,
    )
    if not is_worker:  # it does not count how many jobs run at once
        return replace(found, spares=spares, prepared_bytes=prepared_bytes)
    if found.spares < spares:
        text = "memory for jobs is bounded by %s: %d spare sandboxes instead of %d"
        _warn_of_fewer_spares(text, found.bound, found.spares, spares)
    return found


def give_up_spares(memory: MemoryBudget, lacking_bytes: int) -> MemoryBudget:
    """Return `memory` with so many spares less that `lacking_bytes` more are left for jobs."""
    fewer = memory.lessen(lacking_bytes)
    if fewer != memory:
        text = "memory for jobs is bounded by %s: %d spare sandboxes instead of %d, beside the host's other workers"
        _warn_of_fewer_spares(text, fewer.bound, fewer.spares, memory.spares)
    return fewer


def _warn_of_fewer_spares(text: str, *values: object) -> None:
    log.warning(text, *values, extra={"action": "fewer_sandboxes_ahead"})
