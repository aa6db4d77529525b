"""Measure how fast large files enter and leave sandboxes, through the whole queue, beside cp(1)."""

from __future__ import annotations

import os
import subprocess
import time
from typing import TYPE_CHECKING

from sandfleet import ArtifactSpec, Fleet, SandboxSpec, Settings
from sandfleet_config.store_settings import StoreSettings

from sandbench.figures import FileRate
from sandbench.processes import read_pss_mib
from sandbench.queue_way import WAIT_SECONDS, Kind, worker

if TYPE_CHECKING:
    from pathlib import Path

    from sandbench.counts import Counts
    from sandbench.testbed import Testbed

MIB = 1 << 20
FILE_BYTES = 64 * MIB
SLOTS = 2
INPUTS = 4
COPIES = 2
"""`cp` of each job's bytes: once as they come in, once as they go out."""


def measure_file_rate(testbed: Testbed, counts: Counts) -> FileRate:
    """Run jobs that read 64 MiB and leave as much, with a store in a folder; then copy with cp."""
    root = testbed.disk / testbed.new_name("files")
    for name in ("store", "inputs", "copies"):
        (root / name).mkdir(parents=True)
    inputs = [_new_file(root / "inputs" / str(number)) for number in range(INPUTS)]
    store = StoreSettings(url=f"file://{root / 'store'}")
    settings = {
        "SANDFLEET_STORE__URL": store.url,
        "SANDFLEET_FILES__CACHE_DIR": str(root / "cache"),
        "SANDFLEET_FILES__SPOOL_DIR": str(root / "spool"),
    }
    jobs = counts.file_jobs
    with (
        testbed.serve_redis(testbed.new_name("redis")) as server,
        Fleet(Settings.model_validate({"redis_url": server.url, "store": store})) as fleet,
        worker(testbed, server, testbed.new_name("worker"), SLOTS, Kind(settings=settings)) as process,
    ):
        references = fleet.upload_many(inputs)
        specs = [
            SandboxSpec(
                image="busybox",
                # As many bytes out as in, and others for each job: what the store has is not sent again.
                command=["sh", "-c", f"(printf %08d {number}; tail -c +9 in) > out"],
                timeout=120,
                files=[references[number % INPUTS].at("in")],
                artifacts=[ArtifactSpec(glob="out")],
            )
            for number in range(jobs)
        ]
        before, began = read_pss_mib(process.pid), time.monotonic()
        for outcome in fleet.as_completed(fleet.submit_many(specs, batch="files"), timeout=WAIT_SECONDS):
            if not outcome.is_ok or outcome.artifacts_lost:
                raise RuntimeError(f"a job did not end well: {outcome.to_summary()} {outcome.artifacts_lost}")
        seconds, after = time.monotonic() - began, read_pss_mib(process.pid)
    return FileRate(
        jobs=jobs,
        file_mib=FILE_BYTES // MIB,
        seconds=seconds,
        copy_seconds=_copy(inputs, root / "copies", jobs * COPIES),
        worker_mib_before=before,
        worker_mib_after=after,
    )


def _new_file(path: Path) -> Path:
    path.write_bytes(os.urandom(FILE_BYTES))
    return path


def _copy(inputs: list[Path], folder: Path, copies: int) -> float:
    """Copy one file after another with cp; return the seconds."""
    began = time.monotonic()
    for number in range(copies):
        target = folder / str(number % INPUTS)
        subprocess.run(["cp", inputs[number % INPUTS], target], check=True)
    return time.monotonic() - began
