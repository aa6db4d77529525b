"""Measure the memory of a worker with many jobs, without its sandboxes, beside stock prefork."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from sandfleet import Fleet, SandboxSpec, Settings

from sandbench.figures import InFlight
from sandbench.processes import find_children, read_pss_mib, wait_until
from sandbench.programs import IMAGES
from sandbench.queue_way import WITHOUT_WARM, Kind, worker
from sandbench.stock_celery import stock_way

if TYPE_CHECKING:
    from sandbench.counts import Counts
    from sandbench.testbed import Testbed

# The worker's own memory is asked for, whatever is in the sandboxes. On systrap each idle one of
# 2024's runsc takes 2 % of a core for ever, which two hundred of them would not leave to the rest;
# and warm ones would only be in the way of so many cold starts.
MANY_IDLE = Kind(settings={**WITHOUT_WARM.settings, "SANDFLEET_RUNSC__PLATFORM": "ptrace"})
BOOT_SECONDS = 120.0
JOB_SECONDS = 600
SMALL_BYTES = 64 << 20
LOOK_SECONDS = 0.3
SETTLE_SECONDS = 1.0


def measure_in_flight(testbed: Testbed, counts: Counts) -> InFlight:
    """Let `in_flight` jobs sleep in their sandboxes, and read the worker's own PSS."""
    jobs = counts.in_flight
    spec = SandboxSpec.model_validate(
        {
            "image": "busybox",
            "command": ["sleep", str(JOB_SECONDS)],
            "timeout": JOB_SECONDS,
            # The sum of the limits is what the host must have.
            "resources": {"memory_bytes": SMALL_BYTES},
        }
    )
    with (
        testbed.serve_redis(testbed.new_name("redis")) as server,
        worker(testbed, server, "in-flight", jobs, MANY_IDLE) as process,
        Fleet(Settings.model_validate({"redis_url": server.url})) as fleet,
    ):
        idle = read_pss_mib(process.pid)
        handles = fleet.submit_many([spec] * jobs, batch="in-flight")

        def are_running() -> bool:
            return process.log.count("action=job_started") >= jobs and len(find_children(process.pid)) >= jobs

        wait_until(are_running, BOOT_SECONDS, f"{jobs} jobs run", poll_seconds=LOOK_SECONDS)
        time.sleep(SETTLE_SECONDS)
        busy = read_pss_mib(process.pid)
        fleet.batch("in-flight").cancel()
        for _ in fleet.as_completed(handles, timeout=BOOT_SECONDS):
            pass
    children, whole, each = _measure_prefork(testbed, counts.prefork_children)
    return InFlight(
        jobs=jobs,
        worker_mib=busy,
        idle_worker_mib=idle,
        children=children,
        prefork_mib=whole,
        prefork_child_mib=each,
    )


def _measure_prefork(testbed: Testbed, children: int) -> tuple[int, float, float]:
    rootfs = {image: testbed.unpack(image) for image in IMAGES}
    with stock_way(testbed, rootfs, children) as way:
        each = [read_pss_mib(pid) for pid in find_children(way.process.pid)]
        return len(each), read_pss_mib(way.process.pid) + sum(each), statistics.median(each)
