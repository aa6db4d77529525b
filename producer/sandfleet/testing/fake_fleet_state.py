"""The `FleetState` in memory: no hosts, and marks that stop nothing."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from sandfleet_config.scripts import step_of

from sandfleet.channel.fleet_state import MAX_MARKS, AuditEntry, FleetSummary, QueueState

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping, Sequence

    from sandfleet.channel.fleet_state import Cordon, HostImage, Pause, RunningJob
    from sandfleet.testing.fake_job import FakeJob

M = TypeVar("M")


class FakeFleetState:
    """Keeps marks and audit, and counts the jobs that have not ended."""

    def __init__(self, lock: threading.RLock, jobs: Mapping[str, FakeJob]) -> None:
        self._lock, self._jobs = lock, jobs
        self._cordons: dict[str, Cordon] = {}
        self._pauses: dict[str, Pause] = {}
        self._audit: list[AuditEntry] = []

    def _list_queued(self, queue: str) -> list[tuple[str, FakeJob]]:
        return [(name, job) for name, job in self._jobs.items() if job.queue == queue and job.outcome is None]

    def read_summary(self) -> FleetSummary:
        """Return the queues that jobs were submitted to, and the marks."""
        with self._lock:
            names = sorted({job.queue for job in self._jobs.values()} | set(self._pauses))
            queues = [self._read_queue(name) for name in names]
            marks = tuple(self._cordons[host] for host in sorted(self._cordons))
            return FleetSummary(at=time.time(), cordons=marks, queues=tuple(queues))

    def _read_queue(self, name: str) -> QueueState:
        queued = [job for _, job in self._list_queued(name)]
        waiting = Counter(step_of(job.encoded.spec.priority) for job in queued)
        oldest = min((job.encoded.submitted for job in queued), default=0.0)
        return QueueState(name=name, waiting=waiting, oldest=oldest, pause=self._pauses.get(name))

    def running_jobs(self, host: str) -> list[RunningJob]:  # noqa: ARG002  as in `FleetState`
        """Return nothing: there are no hosts."""
        return []

    def host_images(self) -> Mapping[str, Sequence[HostImage]]:
        """Return nothing: there are no hosts."""
        return {}

    def queued_ids(self, queue: str, first: int, count: int) -> list[str]:
        """Return jobs that have not ended, by priority."""
        with self._lock:
            found = sorted(self._list_queued(queue), key=lambda pair: step_of(pair[1].encoded.spec.priority))
            return [job_id for job_id, _ in found[first : first + count]]

    def whole_queue(self, queue: str, count: int) -> list[str]:
        """Return jobs that have not ended, by priority."""
        return self.queued_ids(queue, 0, count)

    def count_expiring(self, queue: str, before: float) -> int:
        """Count jobs whose ``queue_ttl`` ends before a time."""
        with self._lock:
            left = [job.count_seconds_left() for _, job in self._list_queued(queue)]
            return sum(seconds < before - time.time() for seconds in left)

    def cordon(self, cordon: Cordon) -> None:
        """Keep the mark."""
        with self._lock:
            _add(self._cordons, cordon.host, cordon)

    def uncordon(self, host: str) -> bool:
        """Forget the mark."""
        with self._lock:
            return self._cordons.pop(host, None) is not None

    def pause(self, pause: Pause) -> None:
        """Keep the mark."""
        with self._lock:
            _add(self._pauses, pause.queue, pause)

    def resume(self, queue: str) -> bool:
        """Forget the mark."""
        with self._lock:
            return self._pauses.pop(queue, None) is not None

    def add_audit(self, entry: AuditEntry) -> None:
        """Keep the entry."""
        with self._lock:
            number = len(self._audit) + 1
            self._audit.append(replace(entry, entry_id=f"{number}-0", at=time.time()))

    def read_audit(self, count: int, before: str = "") -> list[AuditEntry]:
        """Return entries, newest first."""
        with self._lock:
            known = before.partition("-")[0]
            end = int(known) - 1 if known.isdigit() else len(self._audit)
            return self._audit[:end][::-1][:count]


def _add(marks: dict[str, M], name: str, mark: M) -> None:
    if name not in marks and len(marks) >= MAX_MARKS:
        raise ValueError(f"there are {MAX_MARKS:,} marks already")
    marks[name] = mark
