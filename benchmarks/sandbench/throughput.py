"""The parts that keep every core busy: jobs a second, and the cost of a job."""

from __future__ import annotations

import contextlib
import statistics
from typing import TYPE_CHECKING

from sandbench.bare_runsc import BareRunsc
from sandbench.figures import Cost, Throughput
from sandbench.programs import IMAGES, PYTHON, TRUE
from sandbench.queue_way import queue_ways
from sandbench.stock_celery import stock_way
from sandbench.ways import BARE, Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from sandbench.counts import Counts
    from sandbench.programs import Program
    from sandbench.testbed import Testbed
    from sandbench.ways import Way

MS = 1000
BUSY_A_CORE = 2
"""A sandbox waits for the kernel at times: with one job a core there is idle time left."""
BARE_COST_JOBS = 12

Runs = dict[str, list[Run]]


def measure_saturated(testbed: Testbed, counts: Counts, cores: int) -> tuple[list[Throughput], list[Cost]]:
    """Run batches by each way in turn at each concurrency; a job's cost is for all cores busy."""
    rootfs = {image: testbed.unpack(image) for image in IMAGES}
    bare = BareRunsc(testbed.new_folder("bare"), rootfs)
    rates: list[Throughput] = []
    costs: list[Cost] = []
    busy = BUSY_A_CORE * cores
    for at_once in sorted({*counts.at_once, busy}):
        with _ways(testbed, rootfs, bare, at_once) as ways:
            for program in (TRUE, PYTHON) if at_once == busy else (TRUE,):
                found = _run_rounds(ways, program, at_once, min(at_once, busy) * counts.jobs_a_slot, counts)
                rates.append(_new_throughput(program, at_once, found))
                if at_once == busy:
                    costs.append(_measure_bare(bare, program, busy, testbed.cgroup_parent))
                    costs += _new_costs(program, found)
    return rates, costs


@contextlib.contextmanager
def _ways(testbed: Testbed, rootfs: dict[str, Path], bare: BareRunsc, at_once: int) -> Iterator[list[Way]]:
    with contextlib.ExitStack() as stack:
        stock = stack.enter_context(stock_way(testbed, rootfs, at_once))
        yield [bare, stock, *stack.enter_context(queue_ways(testbed, at_once))]


def _run_rounds(ways: Iterable[Way], program: Program, at_once: int, jobs: int, counts: Counts) -> Runs:
    found: Runs = {way.name: [] for way in ways}
    for way in ways:
        way.run_many(program, at_once, at_once)  # reads files, and fills what is filled by use
    for _ in range(counts.throughput_rounds):
        for way in ways:
            found[way.name].append(way.run_many(program, jobs, at_once))
    return found


def _new_throughput(program: Program, at_once: int, found: Runs) -> Throughput:
    rates = {name: [run.per_second for run in runs] for name, runs in found.items()}
    return Throughput(program=program.name, at_once=at_once, per_second=rates)


def _new_costs(program: Program, found: Runs) -> Iterator[Cost]:
    for name, runs in found.items():
        jobs = sum(len(run.ends) for run in runs)
        used = [run.cpu for run in runs if run.cpu is not None]
        if used:
            peaks = [peak for run in runs for peak in run.memory_peaks_mib]
            yield Cost(
                program=program.name,
                way=name,
                jobs=jobs,
                sandbox_cpu_ms=_per_job([cpu.sandboxes for cpu in used], jobs),
                worker_cpu_ms=_per_job([cpu.worker for cpu in used], jobs),
                redis_cpu_ms=_per_job([cpu.redis for cpu in used], jobs),
                producer_cpu_ms=_per_job([cpu.producer for cpu in used], jobs),
                total_cpu_ms=sum(cpu.total for cpu in used) / jobs * MS,
                memory_peak_mib=statistics.median(peaks) if peaks else None,
            )


def _per_job(seconds: list[float | None], jobs: int) -> float | None:
    known = [value for value in seconds if value is not None]
    return sum(known) / jobs * MS if known else None


def _measure_bare(bare: BareRunsc, program: Program, at_once: int, parent: str) -> Cost:
    """Run some in cgroups: those are for counting only, their time is not taken."""
    found = bare.measure(program, BARE_COST_JOBS, at_once, parent)
    cpu_ms = statistics.mean(cpu for cpu, _ in found) * MS
    peak = statistics.median(peak for _, peak in found)
    return Cost(
        program=program.name,
        way=BARE,
        jobs=len(found),
        sandbox_cpu_ms=cpu_ms,
        total_cpu_ms=cpu_ms,
        memory_peak_mib=peak,
    )
