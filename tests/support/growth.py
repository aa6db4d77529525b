"""Detect growth while a fleet runs: compare early and late samples of processes, host and Redis."""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import redis
from cgrouptree import CGROUP_PARENT, find_cgroups

if TYPE_CHECKING:
    from stage import Stage, Worker

MIB = 1 << 20
TOLERATED_SHARE = 0.1
MIN_SAMPLES = 90
"""A measure with fewer samples is left out: workers that still start say nothing about growth."""


@dataclass(frozen=True)
class Measure:
    """One thing that is sampled; `slack` comes on top of a tenth."""

    name: str
    slack: float
    scale: float = 1


RSS = Measure("memory of the spared worker, MiB", slack=12 * MIB, scale=MIB)
DESCRIPTORS = Measure("descriptors of the spared worker", slack=16)
THREADS = Measure("threads of the spared worker", slack=4)
OTHERS_RSS = Measure("memory of any other worker, MiB", slack=12 * MIB, scale=MIB)
OTHERS_DESCRIPTORS = Measure("descriptors of any other worker", slack=16)
CGROUPS = Measure("cgroups of sandboxes", slack=16)
MOUNTS = Measure("mounts below the host's folder", slack=4)
KEYS = Measure("keys of Redis without a TTL", slack=60)
ALL = (RSS, DESCRIPTORS, THREADS, OTHERS_RSS, OTHERS_DESCRIPTORS, CGROUPS, MOUNTS, KEYS)
"""The slack: the difference that so many jobs, spares and queued messages make in a measure."""


@dataclass
class Growth:
    """Sample a stage; the caller chooses the moments."""

    stage: Stage
    samples: dict[Measure, list[float]] = field(default_factory=dict)

    def sample(self, spared: Worker, ready: list[Worker]) -> None:
        """Take a sample of the `ready` workers, without measures that fail as Redis is down."""
        for worker in ready:
            is_spared = worker is spared
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(worker.process.pid)
                self._note(RSS if is_spared else OTHERS_RSS, process.memory_info().rss)
                self._note(DESCRIPTORS if is_spared else OTHERS_DESCRIPTORS, process.num_fds())
                if is_spared:
                    self._note(THREADS, process.num_threads())
        self._note(CGROUPS, len(find_cgroups(CGROUP_PARENT)))
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        self._note(MOUNTS, sum(str(self.stage.folder) in line for line in mounts))
        with contextlib.suppress(redis.RedisError):
            client: Any = self.stage.redis
            database = client.info("keyspace").get("db0", {"keys": 0, "expires": 0})
            self._note(KEYS, database["keys"] - database["expires"])

    def _note(self, measure: Measure, value: float) -> None:
        self.samples.setdefault(measure, []).append(value)

    def compare(self) -> list[tuple[Measure, float, float, bool]]:
        """Return each measure with the medians of its first and last third, and if it has grown.

        Nothing has where the last is at most a tenth and the measure's slack above the first.
        """
        found = []
        for measure in ALL:
            values = self.samples.get(measure, [])
            third = len(values) // 3
            if len(values) >= MIN_SAMPLES:
                first, last = statistics.median(values[:third]), statistics.median(values[-third:])
                grown = last > first * (1 + TOLERATED_SHARE) + measure.slack
                found.append((measure, first, last, grown))
        return found
