"""The file descriptors that a worker needs, and its limit on them (getrlimit(2), RLIMIT_NOFILE)."""

from __future__ import annotations

import resource
from dataclasses import dataclass, replace

HIGH_FD = 300
"""runsc dup2()s passed descriptors onto low guest numbers.

Sources among low numbers would be overwritten. And a process inherits the size of its parent's
descriptor table: runsc (20240729) uses number 256, and to grow the table of a process with threads
waits for an RCU grace period, 8 to 15 ms a boot (measured).
"""

BASE = 100
"""Python, Celery, the connections to Redis, logs and locks."""
PER_SANDBOX = 11
"""Five pipes, two pidfds, an epoll, the cancellation, two OOM notifications."""
PER_FILES = 5
"""Two files of whole output, one that enters or leaves, a connection to Redis and to the store."""
PER_DATASETS = 4
"""The lock of each dataset. Few jobs have as many; they may have 16, and most hosts have room."""
PER_JOB = PER_SANDBOX + PER_FILES + PER_DATASETS + 5
"""The five: the image's lock, two of the host's slot, a connection to Redis, and one in reserve."""
PER_WAITING = PER_DATASETS + 8
"""The cancellation, and a pull: two locks, a staging folder, its tool's four.

A fetch takes no more. They are not opened while the job runs.
"""
PER_SPARE = 10
"""Five pipes, two pidfds, an epoll; two OOM notifications of one that is prepared."""
PER_LAUNCHER = 7
"""Five pipes, a pidfd, an epoll: a launcher in its cgroup that waits for a sandbox to boot."""
PER_SPAWN = 14
"""The other ends of the pipes, init, and some in reserve, while a launcher is started."""
PER_SPAWN_HIGH = 3
"""Numbers from `HIGH_FD` on that its child uses for what runsc gets."""
RUNSC = 64
"""A sandbox's processes have the same limit, and number theirs above those that we pass."""
WANTED = 1 << 16
"""The soft limit is raised to this at most, or to what is needed.

Some tools loop over all descriptors that may be.
"""


@dataclass(frozen=True)
class DescriptorNeed:
    """Descriptors for `jobs` that run, `boots` that begin and `spares` that idle, all at once.

    They are those of one process. `waiting` jobs are beside those that run.
    """

    jobs: int
    boots: int
    spares: int
    waiting: int = 0

    @property
    def total(self) -> int:
        """The least limit under which all of that works."""
        starting = min(self.boots, self.jobs + 1)
        waiting = self.boots if self.spares else 0  # a pool of size 0 keeps no launchers either
        count = BASE + PER_JOB * self.jobs + PER_SPARE * self.spares + PER_LAUNCHER * waiting + PER_SPAWN * starting
        count += PER_WAITING * self.waiting
        return max(count, HIGH_FD + PER_SPAWN_HIGH * starting) + RUNSC + 1

    def fit(self, limit: int) -> DescriptorNeed:
        """Return this with as many spares as fit under `limit`, perhaps none."""
        if self.total <= limit:
            return self
        least = replace(self, spares=1)
        spares = max(0, min(self.spares, (limit - least.total) // PER_SPARE + 1)) if self.spares else 0
        return replace(self, spares=spares)


def raise_limit(needed: int) -> int:
    """Raise this process's soft limit as far as is of use and the hard limit lets it.

    Return the soft limit in force.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max(needed, WANTED)
    target = max(needed, WANTED) if hard == resource.RLIM_INFINITY else min(hard, max(needed, WANTED))
    if soft < target:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))  # up to the hard limit it needs no right
    return max(soft, target)
