"""Measure one batch on one, two and three hosts.

Each host is a network namespace with one worker and one slot. The jobs sleep. The hosts share this
machine's cores, so jobs that need CPU would measure the cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sandbench.chosen_runsc import put_runsc_first
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_worker.sandbox.image.store import ImageStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))  # the hosts of the tests
from lan import Lan

SPEC = SandboxSpec(image="busybox", command=["sleep", "1"])
console = Console()


def measure(fleet: Fleet, jobs: int) -> tuple[float, Counter[str]]:
    """Return the jobs a second of one batch, and the number of jobs on each host."""
    started = time.perf_counter()
    outcomes = list(fleet.as_completed(fleet.submit_many([SPEC] * jobs), timeout=600))
    rate = jobs / (time.perf_counter() - started)
    if not all(outcome.is_ok for outcome in outcomes):
        sys.exit("a job did not end well")
    return rate, Counter(outcome.host for outcome in outcomes)


def main() -> None:
    """Start hosts one by one, and time the same batch with each number of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small batch")
    jobs = 12 if parser.parse_args().quick else 30
    if os.geteuid() != 0:
        sys.exit("network namespaces and sandboxes with limits need root")
    put_runsc_first()
    table = Table(title=f"{jobs} jobs of `sleep 1`, one at a time a host")
    for column in ("hosts", "jobs/s", "of one host", "jobs on each"):
        table.add_column(column, justify="right")
    # A short path: sockets live below it (unix(7): 107 characters).
    with tempfile.TemporaryDirectory(prefix="sfb-") as folder:
        images = Path(folder) / "images"
        ImageStore(images).add("busybox")
        with Lan(Path(folder), images) as lan, Fleet(Settings.model_validate({"redis_url": lan.url})) as fleet:
            first = 0.0
            for number in range(1, 4):
                lan.add_host(f"host{number}").start(1).wait_ready()
                rate, shares = measure(fleet, jobs)
                first = first or rate
                each = ", ".join(str(count) for _, count in sorted(shares.items()))
                table.add_row(str(number), f"{rate:.2f}", f"{rate / first:.2f}", each)
    console.print(table)


if __name__ == "__main__":
    main()
