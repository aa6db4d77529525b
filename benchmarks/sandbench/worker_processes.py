"""Measure how many more jobs several worker processes of one host end than one does.

A stand-in for runsc reports at once that the program has exited, as for `one_worker`.
"""

from __future__ import annotations

import contextlib
import os
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
from sandfleet import Fleet, Settings

from sandbench.figures import WorkerProcesses
from sandbench.growth import MICROS, SKIPPED_JOBS, Used, run_batch
from sandbench.one_worker import compile_stand_in
from sandbench.processes import find_children
from sandbench.queue_way import WITHOUT_WARM, Kind, worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbench.counts import Counts
    from sandbench.processes import Process
    from sandbench.testbed import Server, Testbed

NUMBERS = (1, 2)
SLOTS = 16
ROUNDS = 3
ALL_READY = "action=processes_ready"


@dataclass(frozen=True)
class _Part:
    """The processes of one worker, as the reader of their CPU sees them."""

    pid: int


@dataclass(frozen=True)
class _Sample:
    used: Used
    idle_seconds: float
    jobs: int

    def to_figures(self, number: int) -> WorkerProcesses:
        used = self.used
        return WorkerProcesses(
            number=number,
            per_second=self.jobs / used.seconds,
            worker_cpu_us=used.worker_cpu / self.jobs * MICROS,
            redis_cpu_us=used.redis_cpu / self.jobs * MICROS,
            busy_cores=(os.cpu_count() or 1) - self.idle_seconds / used.seconds,
        )


@dataclass(frozen=True)
class _Way:
    """A fleet of one worker with `number` processes."""

    number: int
    fleet: Fleet
    server: Server
    processes: list[_Part]

    def sample(self, batch: str, jobs: int) -> _Sample:
        before, idle = self._read(), psutil.cpu_times().idle
        run_batch(self.fleet, batch, jobs)
        return _Sample(self._read().since(before), psutil.cpu_times().idle - idle, jobs)

    def _read(self) -> Used:
        return Used.read(self.server, self.processes)


def measure_worker_processes(testbed: Testbed, counts: Counts) -> list[WorkerProcesses]:
    """Give each number of processes more jobs than they can end, in turn; the median of each."""
    program = str(compile_stand_in(testbed))
    with contextlib.ExitStack() as stack:
        ways = [stack.enter_context(_way(testbed, number, program)) for number in NUMBERS]
        for way in ways:
            run_batch(way.fleet, "first", SKIPPED_JOBS * way.number)
        rounds = [[way.sample(f"batch{turn}", counts.measured_jobs) for way in ways] for turn in range(ROUNDS)]
    found = zip(NUMBERS, zip(*rounds, strict=True), strict=True)
    return [_find_median([sample.to_figures(number) for sample in samples]) for number, samples in found]


def _find_median(rows: list[WorkerProcesses]) -> WorkerProcesses:
    names = ("per_second", "worker_cpu_us", "redis_cpu_us", "busy_cores")
    return rows[0].model_copy(update={name: statistics.median(getattr(row, name) for row in rows) for name in names})


@contextlib.contextmanager
def _way(testbed: Testbed, number: int, program: str) -> Iterator[_Way]:
    told = {"SANDFLEET_RUNSC__PATH": program, "SANDFLEET_PROCESSES": str(number)}
    kind = Kind(settings={**WITHOUT_WARM.settings, **told})
    with (
        testbed.serve_redis(testbed.new_name("redis")) as server,
        Fleet(Settings.model_validate({"redis_url": server.url})) as fleet,
        worker(testbed, server, testbed.new_name("processes"), SLOTS, kind) as process,
    ):
        yield _Way(number, fleet, server, _find_parts(process, number))


def _find_parts(process: Process, number: int) -> list[_Part]:
    if number == 1:
        return [_Part(process.pid)]
    process.wait_for_line(ALL_READY)
    found = [_Part(process.pid), *map(_Part, find_children(process.pid))]
    if len(found) != number + 1:
        raise RuntimeError(f"{number} processes and their supervisor, and not {len(found)}")
    return found
