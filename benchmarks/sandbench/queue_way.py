"""The whole product: a producer, Redis and real workers, with warm sandboxes or without."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet import Fleet, Settings
from sandfleet_config.settings import setting_names

from sandbench.processes import PYTHON, Process, read_cpu_seconds, running
from sandbench.ways import COLD, WARM, Cpu, Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandfleet import Outcome

    from sandbench.programs import Program
    from sandbench.testbed import Server, Testbed

WAIT_SECONDS = 300.0
MIB = 1 << 20
READY = "action=worker_ready"
WARM_SIZE = "SANDFLEET_WARM__SIZE"
PACKAGE_FOLDER = Path(__file__).parents[1]
NO_WARM = f"this release's worker has no warm sandboxes (it does not know {WARM_SIZE})"


def knows_warm() -> bool:
    """Whether this release's worker has warm sandboxes."""
    return any(name == WARM_SIZE for name, *_ in setting_names())


@dataclass(frozen=True)
class Kind:
    """How a worker is started: its program, and settings beside those of its testbed."""

    program: tuple[str, ...] = ("-m", "sandfleet_worker.cli", "start")
    settings: Mapping[str, str] = field(default_factory=dict)


AS_SHIPPED = Kind()
WITHOUT_WARM = Kind(settings={WARM_SIZE: "0"} if knows_warm() else {})
STAND_IN = Kind(("-m", "sandbench.stand_in"), WITHOUT_WARM.settings)


@dataclass
class QueueWay:
    """Run jobs through a fleet."""

    name: str
    fleet: Fleet
    server: Server
    workers: list[Process]

    def run(self, program: Program) -> None:
        """Submit, and wait for the outcome."""
        check_ended(self.fleet.submit(program.spec).outcome(timeout=WAIT_SECONDS))

    def run_many(self, program: Program, jobs: int, at_once: int) -> Run:  # noqa: ARG002  the workers' own
        """Submit one batch, and stream its outcomes."""
        spec = program.spec
        before = self._read_cpu()
        began = time.perf_counter()
        ends, outcomes = [], []
        handles = self.fleet.submit_many([spec] * jobs)
        for outcome in self.fleet.as_completed(handles, timeout=WAIT_SECONDS):
            ends.append(time.perf_counter() - began)
            outcomes.append(check_ended(outcome))
        after = self._read_cpu()
        worker, redis, producer = (end - start for start, end in zip(before, after, strict=True))
        sandboxes = sum(outcome.usage.cpu_seconds or 0.0 for outcome in outcomes)
        peaks = tuple((outcome.usage.memory_peak_bytes or 0) / MIB for outcome in outcomes)
        return Run(ends, Cpu(sandboxes, worker, redis, producer, sandboxes + worker + redis + producer), peaks)

    def _read_cpu(self) -> tuple[float, float, float]:
        workers = sum(read_cpu_seconds(worker.pid) for worker in self.workers)
        return workers, self.server.read_cpu_seconds(), time.process_time()


def check_ended(outcome: Outcome) -> Outcome:
    """Return the outcome of a job that ended well.

    Raises:
        RuntimeError: it did not.
    """
    if not outcome.is_ok:
        raise RuntimeError(f"a job did not end well: {outcome.to_summary()}")
    return outcome


@contextlib.contextmanager
def worker(testbed: Testbed, server: Server, name: str, concurrency: int, kind: Kind) -> Iterator[Process]:
    """Run a worker on a host of its own (slots, state); it is ready."""
    root = testbed.new_root()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("SANDFLEET_", "CELERY_"))}
    environment |= {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH", "")))),
        "SANDFLEET_REDIS_URL": server.url,
        "SANDFLEET_CONCURRENCY": str(concurrency),
        "SANDFLEET_SLOTS_DIR": str(root.with_suffix(".slots")),
        "SANDFLEET_RUNSC__ROOT_DIR": str(root),
        "SANDFLEET_RUNSC__CGROUP_PARENT": testbed.cgroup_parent,
        "SANDFLEET_IMAGES__ROOT": str(testbed.images),
        "SANDFLEET_DRAIN_SECONDS": "0",
    }
    log_path = testbed.disk / f"{name}-{root.name}.log"
    with running([PYTHON, *kind.program], log_path, environment | dict(kind.settings)) as process:
        process.wait_for_line(READY)
        yield process


@contextlib.contextmanager
def queue_way(testbed: Testbed, name: str, concurrency: int, kind: Kind) -> Iterator[QueueWay]:
    """Run a fleet of one worker."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(testbed.serve_redis(testbed.new_name("redis")))
        process = stack.enter_context(worker(testbed, server, "worker", concurrency, kind))
        fleet = stack.enter_context(Fleet(Settings.model_validate({"redis_url": server.url})))
        yield QueueWay(name, fleet, server, [process])


@contextlib.contextmanager
def queue_ways(testbed: Testbed, concurrency: int) -> Iterator[list[QueueWay]]:
    """Run the fleets that this release can: without spares, and with as many as by default."""
    with contextlib.ExitStack() as stack:
        ways = [stack.enter_context(queue_way(testbed, COLD, concurrency, WITHOUT_WARM))]
        if knows_warm():
            ways.append(stack.enter_context(queue_way(testbed, WARM, concurrency, AS_SHIPPED)))
        yield ways
