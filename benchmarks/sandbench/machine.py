"""The facts of the machine on which the figures were measured."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

from sandbench.figures import Machine

RCU_EXPEDITED = Path("/sys/kernel/rcu_expedited")
CGROUP_V2 = Path("/sys/fs/cgroup/cgroup.controllers")
NO_SUCH_COMMIT = "unknown"


def read_machine() -> Machine:
    """Return the facts of this machine, and its load before the run."""
    return Machine(
        date=datetime.now(UTC).date().isoformat(),
        cpu=_read_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        kernel=platform.release().partition("-")[0],  # what a distribution or a cloud appends says little to others
        cgroup_version=2 if CGROUP_V2.exists() else 1,
        runsc=_first_line("runsc", "--version").removeprefix("runsc version "),
        redis=_first_line("redis-server", "--version").split("v=")[-1].split()[0],
        python=platform.python_version(),
        is_rcu_expedited=RCU_EXPEDITED.exists() and RCU_EXPEDITED.read_text().strip() != "0",
        load_at_start=round(os.getloadavg()[0], 2),
        commit=_read_commit(),
    )


def _read_cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _first_line(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]


def _read_commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=10"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or NO_SUCH_COMMIT
