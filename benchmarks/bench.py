"""How fast is a job, side by side in one run: bare `runsc run` as one writes it by hand, our runner alone, and the whole queue.

Run it by `make bench` (ARGS="--quick" for a glance). Machines are noisy: quote the ratios, not the milliseconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from sandfleet import Fleet, SandboxSpec
from sandfleet_config.settings import HostSettings, ImagesSettings, RunscSettings, Settings
from sandfleet_worker.sandbox.images import ImageStore
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRIPTS = Path(sys.executable).parent
SPEC = SandboxSpec(image="busybox", command=["/bin/true"])
IN_FLIGHT = 2 * (os.cpu_count() or 1)
console = Console()


class BareRunsc:
    """What a user writes by hand: an unpacked folder, a config.json, an attached `runsc run`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        busybox = shutil.which("busybox") or sys.exit("busybox is not installed")
        (folder / "rootfs/bin").mkdir(parents=True)
        shutil.copy(busybox, folder / "rootfs/bin/true")
        self._number = 0

    def run(self) -> None:
        """Run /bin/true in a sandbox of its own."""
        self._number += 1
        bundle = self._folder / f"bundle{self._number}"
        bundle.mkdir()
        process = {"args": ["/bin/true"], "cwd": "/", "user": {"uid": 65534, "gid": 65534}, "env": ["PATH=/bin"]}
        root = {"path": str(self._folder / "rootfs"), "readonly": True}
        config = {"ociVersion": "1.0.2", "process": process, "root": root}
        (bundle / "config.json").write_text(json.dumps(config))
        flags = [f"--root={bundle}/state", "--network=none", "--ignore-cgroups", "--platform=systrap"]
        command = ["runsc", *flags, "run", f"--bundle={bundle}", f"bench{os.getpid()}-{self._number}"]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        shutil.rmtree(bundle)


@contextmanager
def local_stack(folder: Path, images: Path) -> Iterator[Settings]:
    """Run Redis and one worker in `folder`."""
    environment = {
        **os.environ,
        "SANDFLEET_LOCAL_DIR": str(folder / "local"),
        "SANDFLEET_LOCAL_STATE_DIR": str(folder / "state"),
        "SANDFLEET_SLOTS_DIR": str(folder / "slots"),
        "SANDFLEET_RUNSC__ROOT_DIR": str(folder / "worker"),
        "SANDFLEET_IMAGES__ROOT": str(images),
        "SANDFLEET_CONCURRENCY": str(IN_FLIGHT),
    }
    log_path = folder / "stack.log"
    with log_path.open("wb") as log:
        command = [str(SCRIPTS / "sandfleet-worker"), "local", "--no-flower"]
        stack = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        while "sandfleet is up" not in log_path.read_text(errors="replace"):
            if stack.poll() is not None:
                sys.exit(log_path.read_text(errors="replace"))
            time.sleep(0.1)
        yield Settings(local_dir=folder / "local")
    finally:
        stack.send_signal(signal.SIGTERM)
        stack.wait(60)


def time_once(run: Callable[[], object]) -> float:
    """Return the milliseconds that `run` takes."""
    started = time.perf_counter()
    run()
    return (time.perf_counter() - started) * 1000


def measure_latency(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Run each way in turn, again and again: what the machine does meanwhile hits all of them."""
    for run in ways.values():
        run()
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            found[name].append(time_once(run))
    return found


def measure_rate(run: Callable[[], object], jobs: int) -> float:
    """Return jobs a second with `IN_FLIGHT` at once."""
    started = time.perf_counter()
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        list(threads.map(lambda _: run(), range(jobs)))
    return jobs / (time.perf_counter() - started)


def measure_queue_rate(fleet: Fleet, jobs: int) -> float:
    """Return jobs a second of one batch through the queue, from the first submit to the last outcome."""
    started = time.perf_counter()
    handles = fleet.submit_many([SPEC] * jobs, batch="bench")
    ended = sum(1 for outcome in fleet.as_completed(handles, timeout=600) if outcome.is_ok)
    if ended != jobs:
        sys.exit(f"only {ended} of {jobs} jobs were OK")
    return jobs / (time.perf_counter() - started)


def show(latencies: dict[str, list[float]], rates: dict[str, float]) -> None:
    """Print one table: each way against bare runsc."""
    table = Table(title=f"/bin/true, {os.cpu_count()} cores, {IN_FLIGHT} in flight, {platform.release()}")
    for column in ("way", "p50 ms", "p95 ms", "of bare", "jobs/s", "of bare "):
        table.add_column(column, justify="left" if column == "way" else "right")
    bare_latency, bare_rate = statistics.median(latencies["bare runsc"]), rates["bare runsc"]
    for name, times in latencies.items():
        p50, p95 = statistics.median(times), statistics.quantiles(times, n=20)[-1]
        rate = rates[name]
        table.add_row(
            name, f"{p50:.0f}", f"{p95:.0f}", f"{p50 / bare_latency:.2f}", f"{rate:.1f}", f"{rate / bare_rate:.2f}"
        )
    console.print(table)


def main() -> None:
    """Measure, print, and write `benchmarks/results/latest.json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rounds only")
    rounds, jobs = (8, 30) if parser.parse_args().quick else (40, 200)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sandfleet-bench-")))
        images = folder / "images"
        ImageStore(images).add("busybox")
        settings = HostSettings(runsc=RunscSettings(root_dir=folder / "runner"), images=ImagesSettings(root=images))
        runner = stack.enter_context(RunscRunner(settings))
        fleet = stack.enter_context(Fleet(stack.enter_context(local_stack(folder, images))))
        bare = BareRunsc(folder / "bare")
        ways: dict[str, Callable[[], object]] = {
            "bare runsc": bare.run,
            "runner alone": lambda: runner.run(SPEC),
            "whole queue": lambda: fleet.submit(SPEC).result(timeout=60),
        }
        latencies = measure_latency(ways, rounds)
        rates = {name: measure_rate(ways[name], jobs) for name in ("bare runsc", "runner alone")}
        rates["whole queue"] = measure_queue_rate(fleet, jobs)
    show(latencies, rates)
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    record = {"at": datetime.now(UTC).isoformat(), "kernel": platform.release(), "cores": os.cpu_count()}
    text = json.dumps({**record, "latency_ms": latencies, "jobs_per_second": rates}, indent=1)
    (results / "latest.json").write_text(text)


if __name__ == "__main__":
    main()
