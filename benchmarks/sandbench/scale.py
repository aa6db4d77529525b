"""Compute the size of the fleet that one Redis serves, from the figures of a run. Pure."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbench.figures import Figures

SAFE_SHARE = 0.5
"""Share of Redis's one thread in steady load: the rest is for bursts, AOF rewrites, watching."""
MICROS = 1_000_000
JOB_SECONDS = (0.1, 1.0, 10.0, 60.0, 600.0)
SLOTS_A_HOST = (16, 64)
DAY_SECONDS = 86_400
GIB = 1 << 30


@dataclass(frozen=True)
class Capacity:
    """The capacity of one Redis's thread."""

    job_us: float
    """Redis's CPU a job, from submit to collected outcome."""
    busy_us: float
    """Redis's CPU each second for one worker beside its jobs while all its slots are taken.

    It serves beats, sweeps and heartbeats.
    """

    @property
    def ceiling(self) -> float:
        """Jobs a second with the thread busy all the time."""
        return MICROS / self.job_us

    @property
    def safe(self) -> float:
        """Jobs a second with the share that leaves room."""
        return SAFE_SHARE * self.ceiling

    def hosts(self, slots: int, job_seconds: float) -> float:
        """Return how many hosts, of one worker with `slots` busy slots, leave that room."""
        return SAFE_SHARE * MICROS / (self.busy_us + slots / job_seconds * self.job_us)


def find_capacity(figures: Figures) -> Capacity | None:
    """Return the capacity that a run's figures allow, by the median of the measured fleets."""
    rows = [row for row in figures.growth if row.kind == "workers"]
    if not rows or figures.store is None or figures.upkeep is None:
        return None
    job_us = statistics.median(row.redis_cpu_us for row in rows) + figures.store.collect_cpu_us
    return Capacity(job_us, figures.upkeep.busy_cpu_us)


def render_scale(figures: Figures) -> str:
    """Return limit, capacity, hosts and memory as Markdown; empty if the parts are missing."""
    blocks = [
        _render_limit(figures),
        _render_hosts(figures),
        _render_one_worker(figures),
        _render_processes(figures),
        _render_memory(figures),
        _render_commands(figures),
    ]
    return "\n\n".join(block for block in blocks if block)


def _render_limit(figures: Figures) -> str:
    if not figures.limit:
        return ""
    lines = [
        "| processes that only claim and end jobs | jobs/s | Redis busy | Redis CPU, µs a job |",
        "|---|---:|---:|---:|",
    ]
    lines += [
        f"| {row.clients} | {row.per_second:,.0f} | {row.redis_busy:.0%} | {row.redis_cpu_us:.0f} |"
        for row in figures.limit
    ]
    return "\n".join(lines)


def _render_hosts(figures: Figures) -> str:
    capacity, upkeep = find_capacity(figures), figures.upkeep
    if capacity is None or upkeep is None:
        return ""
    told = (
        f"One job costs Redis {capacity.job_us:.0f} µs from submit to collected outcome, so one Redis of this machine ends "
        f"at about {capacity.ceiling:,.0f} jobs/s, and {capacity.safe:,.0f} jobs/s leave it half idle. {_tell_shares(figures)}"
        f"Beside its jobs, a worker whose slots are all taken costs {upkeep.busy_cpu_us:,.0f} µs a second "
        f"({upkeep.busy_calls:.0f} calls), one that looks for jobs {upkeep.idle_cpu_us:,.0f} µs "
        f"({upkeep.idle_calls:.0f} calls; {upkeep.workers} workers)."
    )
    head = ["a job takes", *(f"hosts of {slots} slots" for slots in SLOTS_A_HOST), "jobs/s"]
    lines = [f"| {' | '.join(head)} |", f"|---|{'---:|' * (len(head) - 1)}"]
    for seconds in JOB_SECONDS:
        hosts = [capacity.hosts(slots, seconds) for slots in SLOTS_A_HOST]
        rate = hosts[-1] * SLOTS_A_HOST[-1] / seconds
        lines.append(f"| {seconds:g} s | {' | '.join(f'{number:,.0f}' for number in hosts)} | {rate:,.0f} |")
    return "\n".join([told, "", *lines])


def _tell_shares(figures: Figures) -> str:
    """Return what real workers add to the steps of every job; empty if one was not measured."""
    store, rows = figures.store, [row for row in figures.growth if row.kind == "workers"]
    if store is None or not rows or not figures.limit:
        return ""
    whole = statistics.median(row.redis_cpu_us for row in rows)
    steps = min(row.redis_cpu_us for row in figures.limit)
    rest = max(0.0, whole - steps - store.submit_cpu_us)
    return (
        f"Of it, submit takes {store.submit_cpu_us:.0f}, claim and end {steps:.0f} in pipelines, collect "
        f"{store.collect_cpu_us:.0f}; the other {rest:.0f} are events, wake-ups, looks, and a round trip for each call. "
    )


def _render_one_worker(figures: Figures) -> str:
    one = figures.one_worker
    if one is None:
        return ""
    return (
        f"One worker process ends at {one.per_second:,.0f} jobs/s. It does everything for a sandbox there but runsc itself "
        f"(folder, cgroups, pipes, processes, Redis): {one.cpu_us / 1000:.1f} ms of its CPU a job, mostly Python, of which one "
        f"thread runs at a time."
    )


def _render_processes(figures: Figures) -> str:
    rows = figures.worker_processes
    if not rows:
        return ""
    lines = [
        "| worker processes, stand-in runsc | jobs/s | their CPU, ms a job | Redis, µs a job | busy cores |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.number} | {row.per_second:,.0f} | {row.worker_cpu_us / 1000:.2f} | {row.redis_cpu_us:.0f} "
        f"| {row.busy_cores:.1f} of {figures.machine.cores} |"
        for row in rows
    ]
    return "\n".join(lines)


def _render_memory(figures: Figures) -> str:
    store = figures.store
    if store is None:
        return ""
    queued, ended = GIB / store.queued_bytes / 1000, GIB / store.ended_bytes / 1000
    steady = store.ended_bytes * DAY_SECONDS / GIB
    return (
        f"A queued job takes {store.queued_bytes:,.0f} bytes, an ended one {store.ended_bytes:,.0f} until its TTL (each with a "
        f"batch and an idempotency key, the ended one with {store.output_bytes} bytes of output). 1 GiB holds {queued:,.0f} k "
        f"queued jobs or {ended:,.0f} k outcomes. With the default TTL of a day, each job/s of steady load keeps {steady:.2f} "
        f"GiB of outcomes. From submit to collected outcome {store.network_bytes / 1000:.1f} kB of each job go over the network."
    )


def _render_commands(figures: Figures) -> str:
    if figures.store is None:
        return ""
    lines = ["| Redis command | calls a job | µs a call |", "|---|---:|---:|"]
    lines += [f"| {name} | {calls:.2f} | {micros:.2f} |" for name, (calls, micros) in figures.store.commands.items()]
    return "\n".join(lines)
