"""Measure the limit of one worker process.

A stand-in for runsc reports at once that the program has exited.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet import Fleet, Settings

from sandbench.figures import OneWorker
from sandbench.growth import MICROS, SKIPPED_JOBS, Used, run_batch
from sandbench.queue_way import WITHOUT_WARM, Kind, worker

if TYPE_CHECKING:
    from sandbench.counts import Counts
    from sandbench.testbed import Testbed

SLOTS = 8
SOURCE = Path(__file__).with_name("stand_in_runsc.c")


def measure_one_worker(testbed: Testbed, counts: Counts) -> OneWorker:
    """Give one worker more jobs than it can end."""
    kind = Kind(settings={**WITHOUT_WARM.settings, "SANDFLEET_RUNSC__PATH": str(compile_stand_in(testbed))})
    with (
        testbed.serve_redis(testbed.new_name("redis")) as server,
        Fleet(Settings.model_validate({"redis_url": server.url})) as fleet,
        worker(testbed, server, testbed.new_name("one"), SLOTS, kind) as process,
    ):
        run_batch(fleet, "first", SKIPPED_JOBS)
        before, jobs = Used.read(server, [process]), counts.measured_jobs
        run_batch(fleet, "batch", jobs)
        used = Used.read(server, [process]).since(before)
    return OneWorker(per_second=jobs / used.seconds, cpu_us=used.worker_cpu / jobs * MICROS)


def compile_stand_in(testbed: Testbed) -> Path:
    """Return the program that stands in for runsc; the set-up's own compiler is used."""
    program, real = testbed.disk / "stand-in-runsc", shutil.which("runsc")
    compiler = next(found for name in ("cc", "gcc", "clang", "tcc") if (found := shutil.which(name)))
    subprocess.run([compiler, "-O2", f'-DRUNSC="{real}"', "-o", str(program), str(SOURCE)], check=True)
    return program
