"""The hosts, workers and queues of a fleet, and the marks that operators put on them.

Implemented on Redis and, for tests, in memory. Every answer is bounded; times are unix times by
Redis's clock, 0.0 where they are not known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

WorkerState: TypeAlias = Literal["up", "cordoned", "draining", "drained", "stopping", "late"]
"""``late``: its lease is over, and no other worker has taken over yet.

``draining``: an operator drains its host; ``stopping``: it was told to end (SIGTERM).
"""
MAX_COUNTED: Final = 10_000
"""How many jobs of a queue are looked at for those that expire."""
MAX_NOTE: Final = 500
"""Longest reason or note in characters."""
MAX_MARKS: Final = 10_000
"""Most hosts that are cordoned, and most queues that are paused, at the same time."""


@dataclass(frozen=True, slots=True)
class PreparedStarts:
    """How often the jobs of a worker started in a prepared spare, since its own start.

    `misses` are jobs that asked for one and started without, by the reason. `quarantined` names
    preparations that failed too often, ``IMAGE:NAME``.
    """

    starts: int = 0
    misses: Mapping[str, int] = field(default_factory=dict[str, int])
    quarantined: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it in one line; empty where no job asked for a prepared spare."""
        missed = sum(self.misses.values())
        by_reason = sorted(self.misses.items(), key=lambda pair: (-pair[1], pair[0]))
        reasons = ", ".join(f"{reason} {count}" for reason, count in by_reason if count)
        parts = [
            f"{self.starts} of {self.starts + missed} jobs that asked" if self.starts or missed else "",
            f"not the others: {reasons}" if reasons else "",
            f"in quarantine: {', '.join(self.quarantined)}" if self.quarantined else "",
        ]
        return "; ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker as it was at its last beat.

    `slots` and `busy` are those of its host, which all of its workers share; `running` is the
    number of jobs that this worker runs, `waiting` of those that it has and that have not started.
    `lease_seconds` is what was left of its lease. Sizes are in bytes. `unenforced` names limits that
    the host cannot enforce.
    """

    owner: str
    host: str
    state: WorkerState
    queues: tuple[str, ...] = ()
    slots: int = 0
    busy: int = 0
    running: int = 0
    waiting: int = 0
    warm: Mapping[str, int] = field(default_factory=dict[str, int])
    prepared: PreparedStarts = PreparedStarts()
    lease_seconds: float = 0.0
    load: float = 0.0
    memory_free: int = 0
    memory_budget: int = 0
    disk_free: int = 0
    version: str = ""
    runsc: str = ""
    platform: str = ""
    started: float = 0.0
    seen: float = 0.0
    unenforced: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that a worker has; `started` is when its program started, 0.0 while it waits."""

    job_id: str
    owner: str
    slot: int
    started: float = 0.0


@dataclass(frozen=True, slots=True)
class HostImage:
    """An image on a host: its name, its digest, its bytes, and when a job last used it."""

    name: str
    digest: str
    size: int
    used: float = 0.0


@dataclass(frozen=True, slots=True)
class Cordon:
    """The mark on a host that starts no more jobs, until an operator takes it away.

    With `deadline` the host is drained: what still runs then goes back to its queue.
    """

    host: str
    by: str
    at: float
    reason: str
    deadline: float | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """The mark on a queue of which no job starts; submits go on."""

    queue: str
    by: str
    at: float
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """A queue: how many jobs wait in it, by priority step, and for how long the oldest has.

    `oldest` is when that job was submitted, 0.0 if none waits. `workers` is the number of live
    workers that take its jobs.
    """

    name: str
    waiting: Mapping[int, int] = field(default_factory=dict[int, int])
    oldest: float = 0.0
    workers: int = 0
    pause: Pause | None = None

    @property
    def total(self) -> int:
        """The number of jobs that wait in its lists."""
        return sum(self.waiting.values())

    @property
    def is_served(self) -> bool:
        """Whether a live worker takes its jobs."""
        return self.workers > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSummary:
    """The state of the fleet at `at`.

    `delayed` jobs wait for another attempt, `parked` ones until their batch lets them go.
    `redis_max` is 0 if Redis has no bound. `ended_runs` is the number of the newest ended run.
    `duplicates` counts runs and messages that did not count, such as of a worker that was cut off.
    """

    at: float
    workers: tuple[WorkerStatus, ...] = ()
    cordons: tuple[Cordon, ...] = ()
    queues: tuple[QueueState, ...] = ()
    delayed: int = 0
    parked: int = 0
    dead_letters: int = 0
    redis_used: int = 0
    redis_max: int = 0
    ended_runs: int = 0
    duplicates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """An action that somebody took.

    `action` is a verb such as ``cordon``, `target` what it was done to, `via` ``cli``, ``web`` or ``flower``.
    `count` is the number of jobs that it changed.
    """

    entry_id: str = ""
    at: float = 0.0
    by: str
    role: str = ""
    via: str
    action: str
    target: str
    count: int = 0
    reason: str = ""
    result: str = ""


class FleetState(Protocol):
    """Read and mark the fleet; safe for concurrent use.

    Each method raises `FleetUnavailable` if the transport is down.
    """

    def read_summary(self) -> FleetSummary:
        """Read workers, queues and counts: at most 1,000 workers and 200 queues."""
        ...

    def running_jobs(self, host: str) -> list[RunningJob]:
        """Return the jobs that the workers of a host have, at most 256 of each."""
        ...

    def host_images(self) -> Mapping[str, Sequence[HostImage]]:
        """Return the images of each live host, at most 200 of each."""
        ...

    def queued_ids(self, queue: str, first: int, count: int) -> list[str]:
        """Return ids of jobs in the order in which a claim takes them, from place `first` on."""
        ...

    def whole_queue(self, queue: str, count: int) -> list[str]:
        """Return ids of the jobs of a queue, `count` at most; none that waits throughout is left out."""
        ...

    def count_expiring(self, queue: str, before: float) -> int:
        """Return how many of the next 10,000 jobs of a queue expire before a time."""
        ...

    def cordon(self, cordon: Cordon) -> None:
        """Mark a host, or change its mark.

        Raises:
            ValueError: `MAX_MARKS` hosts are marked.
        """
        ...

    def uncordon(self, host: str) -> bool:
        """Take the mark away; return whether there was one."""
        ...

    def pause(self, pause: Pause) -> None:
        """Mark a queue, or change its mark.

        Raises:
            ValueError: `MAX_MARKS` queues are marked.
        """
        ...

    def resume(self, queue: str) -> bool:
        """Take the mark away; return whether there was one."""
        ...

    def add_audit(self, entry: AuditEntry) -> None:
        """Append an entry; about the newest 10,000 are kept."""
        ...

    def read_audit(self, count: int, before: str = "") -> list[AuditEntry]:
        """Return entries, newest first, older than the one with the id `before`."""
        ...
