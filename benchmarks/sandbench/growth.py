"""Measure a job's cost beside its sandbox as queue and fleet grow.

It uses real workers, a stand-in runner and one Redis.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

from sandfleet import BatchUnknown, Fleet, SandboxSpec, Settings
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.run_summary import NO_FACTS
from sandfleet_config.settings import HostSettings
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.sandbox.policy import admit

from sandbench.calls import RESULT_TTL_SECONDS
from sandbench.figures import Growth, Upkeep
from sandbench.processes import read_cpu_seconds, wait_until
from sandbench.programs import TRUE
from sandbench.queue_way import STAND_IN, worker
from sandbench.stand_in import new_ending

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet import Job

    from sandbench.counts import Counts
    from sandbench.processes import Process
    from sandbench.testbed import Server, Testbed

SLOTS = 8
BATCH = "growth"
SKIPPED_JOBS = 100
"""The first jobs of a worker that has just started."""
LOOK_SECONDS = 0.03
REST_SECONDS = 4.0
MICROS = 1_000_000
WAIT_SECONDS = 120.0
JOBS_FACTOR = 2
"""More jobs for a fleet than for one queue: its last ones do not need every worker."""


def measure_growth(testbed: Testbed, counts: Counts) -> tuple[list[Growth], Upkeep]:
    """Measure each length of queue, then each number of workers, then the last of those at rest."""
    queues = list(_grow_queue(testbed, counts))
    fleets, upkeep = _grow_fleet(testbed, counts)
    return [*queues, *fleets], upkeep


def _grow_queue(testbed: Testbed, counts: Counts) -> Iterator[Growth]:
    """Start a new worker on a queue of each length, and measure the same number of jobs of each."""
    with contextlib.ExitStack() as stack:
        queues = []
        for queued in counts.queued:
            server = stack.enter_context(testbed.serve_redis(testbed.new_name("redis")))
            fleet = stack.enter_context(Fleet(Settings.model_validate({"redis_url": server.url})))
            queues.append((queued, server, fleet))
        rounds = [
            [_begin_queue(testbed, server, fleet, queued, counts.measured_jobs) for queued, server, fleet in queues]
            for _ in range(counts.growth_rounds)
        ]
    for queued, found in zip(counts.queued, zip(*rounds, strict=True), strict=True):
        jobs = sum(done for done, _ in found)
        yield Used.sum(used for _, used in found).to_growth("queued", queued, jobs)


def _begin_queue(testbed: Testbed, server: Server, fleet: Fleet, queued: int, jobs: int) -> tuple[int, Used]:
    """Fill the queue up to `queued`; return the jobs a new worker has ended then, and the use."""
    total, ended = _count(fleet)
    fleet.submit_many([TRUE.spec] * (queued - total + ended), batch=BATCH)
    with worker(testbed, server, testbed.new_name("stand-in"), SLOTS, STAND_IN) as process:
        _wait_for_done(fleet, BATCH, ended + SKIPPED_JOBS)
        before, began = Used.read(server, [process]), fleet.batch(BATCH).counts.done
        _wait_for_done(fleet, BATCH, began + jobs)
        return fleet.batch(BATCH).counts.done - began, Used.read(server, [process]).since(before)


def _count(fleet: Fleet) -> tuple[int, int]:
    try:
        return fleet.batch(BATCH).counts
    except BatchUnknown:
        return 0, 0


def _grow_fleet(testbed: Testbed, counts: Counts) -> tuple[list[Growth], Upkeep]:
    """Add workers, and give them a batch whenever their number is one to measure."""
    with (
        testbed.serve_redis(testbed.new_name("redis")) as server,
        Fleet(Settings.model_validate({"redis_url": server.url})) as fleet,
        contextlib.ExitStack() as stack,
    ):
        alone_us, _ = _rest(server, 1)
        workers: list[Process] = []
        found: list[Growth] = []
        for number in counts.workers:
            while len(workers) < number:
                name = testbed.new_name("stand-in")
                workers.append(stack.enter_context(worker(testbed, server, name, SLOTS, STAND_IN)))
            run_batch(fleet, f"first{number}", SKIPPED_JOBS * number)
            before, jobs = Used.read(server, workers), JOBS_FACTOR * counts.measured_jobs
            run_batch(fleet, f"batch{number}", jobs)
            found.append(Used.read(server, workers).since(before).to_growth("workers", number, jobs))
        return found, _measure_upkeep(server, fleet, workers, alone_us)


def _measure_upkeep(server: Server, fleet: Fleet, workers: Sequence[Process], alone_us: float) -> Upkeep:
    """Measure workers at rest; `alone_us` is Redis's CPU each second without workers."""
    own_us = alone_us / len(workers)
    idle_cpu, idle_calls = _rest(server, len(workers))
    # Every slot has a job that sleeps through the rest and the look for it.
    sleeper = SandboxSpec(image="busybox", command=["sleep", str(2 * REST_SECONDS)])
    jobs = fleet.submit_many([sleeper] * (SLOTS * len(workers)))
    wait_until(
        lambda: all(record is not None and record.state == "running" for record in map(fleet.record, _ids(jobs))),
        REST_SECONDS,
        "every slot is taken",
        poll_seconds=LOOK_SECONDS,
    )
    busy_cpu, busy_calls = _rest(server, len(workers))
    for _ in fleet.as_completed(jobs, timeout=WAIT_SECONDS):
        pass
    return Upkeep(
        workers=len(workers),
        idle_cpu_us=max(0.0, idle_cpu - own_us),
        idle_calls=idle_calls,
        busy_cpu_us=max(0.0, busy_cpu - own_us),
        busy_calls=busy_calls,
    )


def _ids(jobs: Iterable[Job]) -> list[str]:
    return [job.id for job in jobs]


def _rest(server: Server, workers: int) -> tuple[float, float]:
    """Return Redis's CPU (microseconds) and calls a second for each idle one of `workers`."""
    before = Used.read(server, ())
    time.sleep(REST_SECONDS)
    used = Used.read(server, ()).since(before)
    worker_seconds = used.seconds * workers
    return used.redis_cpu / worker_seconds * MICROS, used.calls / worker_seconds


def run_batch(fleet: Fleet, name: str, jobs: int) -> None:
    """Queue a batch, and return when it has ended."""
    fleet.submit_many([TRUE.spec] * jobs, batch=name)
    _wait_for_done(fleet, name, jobs)


def _wait_for_done(fleet: Fleet, batch: str, jobs: int) -> None:
    what = f"{jobs} jobs of {batch} have ended"
    wait_until(lambda: fleet.batch(batch).counts.done >= jobs, WAIT_SECONDS, what, poll_seconds=LOOK_SECONDS)


class HasPid(Protocol):
    """A process that is known by its id."""

    @property
    def pid(self) -> int:
        """Its process id."""
        ...


@dataclass(frozen=True)
class Used:
    """Clock, CPU seconds and calls of Redis at one moment, or between two."""

    seconds: float
    worker_cpu: float
    redis_cpu: float
    calls: int

    @classmethod
    def read(cls, server: Server, workers: Sequence[HasPid]) -> Self:
        """Read everything now."""
        cpu = sum(read_cpu_seconds(process.pid) for process in workers)
        return cls(time.perf_counter(), cpu, server.read_cpu_seconds(), server.read_calls())

    @classmethod
    def sum(cls, parts: Iterable[Self]) -> Self:
        """Return several uses together."""
        found = list(parts)
        return cls(
            sum(used.seconds for used in found),
            sum(used.worker_cpu for used in found),
            sum(used.redis_cpu for used in found),
            sum(used.calls for used in found),
        )

    def since(self, before: Self) -> Self:
        """Return what came after `before`."""
        return type(self)(
            self.seconds - before.seconds,
            self.worker_cpu - before.worker_cpu,
            self.redis_cpu - before.redis_cpu,
            self.calls - before.calls,
        )

    def to_growth(self, kind: str, number: int, jobs: int) -> Growth:
        """Return it for each of `jobs`."""
        return Growth.model_validate(
            {
                "kind": kind,
                "number": number,
                "jobs": jobs,
                "per_second": jobs / self.seconds,
                "worker_cpu_us": self.worker_cpu / jobs * MICROS,
                "redis_cpu_us": self.redis_cpu / jobs * MICROS,
                "redis_calls": self.calls / jobs,
            }
        )


def new_outcome(job_id: str, batch: str | None = None) -> Outcome:
    """Return an outcome as long as a real one."""
    return new_ending(admit(TRUE.spec, HostSettings())).to_outcome(job_id=job_id, batch=batch, queued=0.1, host="host")


def end_all(server: Server, job_ids: Sequence[str], batch: str) -> None:
    """Record an outcome for each queued job by the worker's own ledger, without a worker."""
    ledger = Ledger(server.client, Identity.new("bench"), RESULT_TTL_SECONDS)
    model = new_outcome("", batch)
    assert model.code is ErrorCode.OK
    for job_id in job_ids:
        if not ledger.end_queued(model.model_copy(update={"job_id": job_id}), NO_FACTS):
            raise RuntimeError(f"job {job_id} is not queued")
