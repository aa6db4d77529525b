"""Where one worker process ends: everything of the product but runsc, which says at once that the program has exited."""

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
    from sandbench.ground import Ground

SLOTS = 8
SOURCE = Path(__file__).with_name("stand_in_runsc.c")


def measure_one_worker(ground: Ground, counts: Counts) -> OneWorker:
    """Give one worker more jobs than it can end."""
    kind = Kind(settings={**WITHOUT_WARM.settings, "SANDFLEET_RUNSC__PATH": str(_compile(ground))})
    with (
        ground.serve_redis(ground.new_name("redis")) as server,
        Fleet(Settings.model_validate({"redis_url": server.url})) as fleet,
        worker(ground, server, ground.new_name("one"), SLOTS, kind) as process,
    ):
        run_batch(fleet, "first", SKIPPED_JOBS)
        before, jobs = Used.read(server, [process]), counts.measured_jobs
        run_batch(fleet, "batch", jobs)
        used = Used.read(server, [process]).since(before)
    return OneWorker(per_second=jobs / used.seconds, cpu_us=used.worker_cpu / jobs * MICROS)


def _compile(ground: Ground) -> Path:
    """Return the program that stands in for runsc; the set-up's own compiler is used."""
    program, real = ground.disk / "stand-in-runsc", shutil.which("runsc")
    compiler = next(found for name in ("cc", "gcc", "clang", "tcc") if (found := shutil.which(name)))
    subprocess.run([compiler, "-O2", f'-DRUNSC="{real}"', "-o", str(program), str(SOURCE)], check=True)
    return program
