"""Measure how long the jobs of a killed worker wait for their next start."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_config.settings import WorkerSettings

from sandbench.figures import Recovery
from sandbench.processes import wait_until
from sandbench.queue_way import AS_SHIPPED, worker

if TYPE_CHECKING:
    from sandfleet import Job

    from sandbench.counts import Counts
    from sandbench.processes import Process
    from sandbench.testbed import Testbed

SLOTS = 2
HEIRS = 2
"""As many as a worker has jobs: each may have killed it, and a worker runs one such at a time."""
WAIT_SECONDS = 60.0
# Longer than it takes to see that all of them run and to kill a worker.
SPEC = SandboxSpec(image="busybox", command=["sleep", "2"])


def measure_recovery(testbed: Testbed, counts: Counts) -> Recovery:
    """Kill one of several busy workers again and again.

    The outcomes say when its jobs started on the others.
    """
    seconds: list[float] = []
    with (
        testbed.serve_redis(testbed.new_name("redis")) as server,
        Fleet(Settings.model_validate({"redis_url": server.url})) as fleet,
        contextlib.ExitStack() as others,
    ):
        for number in range(HEIRS):
            others.enter_context(worker(testbed, server, f"other{number}", SLOTS, AS_SHIPPED))
        for number in range(counts.trials):
            with worker(testbed, server, f"victim{number}", SLOTS, AS_SHIPPED) as victim:
                seconds += _kill_and_wait(fleet, victim)
    return Recovery(lease_seconds=float(WorkerSettings.model_fields["lease_seconds"].default), seconds=seconds)


def _kill_and_wait(fleet: Fleet, victim: Process) -> list[float]:
    """Return the seconds from the kill to each new start; all clocks are this machine's."""
    jobs = fleet.submit_many([SPEC] * ((HEIRS + 1) * SLOTS))
    wait_until(lambda: _are_running(fleet, jobs), WAIT_SECONDS, "every job runs")
    victim.kill()
    killed = time.time()
    outcomes = list(fleet.as_completed(jobs, timeout=WAIT_SECONDS))
    found = [outcome.attempts[-1].started.timestamp() - killed for outcome in outcomes if len(outcome.attempts) > 1]
    if len(found) != SLOTS or not all(outcome.is_ok for outcome in outcomes):
        told = [(outcome.to_summary(), len(outcome.attempts)) for outcome in outcomes]
        raise RuntimeError(f"not each job of the killed worker ran once more, and well: {told}")
    return found


def _are_running(fleet: Fleet, jobs: list[Job]) -> bool:
    records = [fleet.record(job.id) for job in jobs]
    return all(record is not None and record.state == "running" for record in records)
