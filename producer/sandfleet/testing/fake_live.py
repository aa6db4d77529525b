"""The `LiveOutputs` of `FakeChannel`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandfleet_config.live import LiveEntry

from sandfleet.channel.live import LiveEntries
from sandfleet.errors import JobUnknown

if TYPE_CHECKING:
    from collections.abc import Mapping
    from threading import RLock

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.waker import Waker
    from sandfleet.testing.fake_job import FakeJob


class FakeLiveWatch:
    """A `LiveWatch`: wakes when the job writes."""

    def __init__(self, live: FakeLive, job_id: str, waker: Waker) -> None:
        self._live, self.job_id, self.waker = live, job_id, waker
        self.is_alive = True

    def arm(self, cursor: str) -> None:
        """Wake now if there is more after `cursor`."""
        if self._live.read({self.job_id: cursor}):
            self.waker.wake()

    def take(self, cursor: str) -> None:  # noqa: ARG002  as in `LiveWatch`
        """Return None: the entries are read anew."""
        return

    def close(self) -> None:
        """Wake no more."""
        self._live.forget(self)


class FakeLive:
    """Keeps what jobs write in memory, if their specs say `output.live`."""

    def __init__(self, lock: RLock, jobs: dict[str, FakeJob]) -> None:
        self._lock, self._jobs = lock, jobs
        self._entries: dict[str, list[LiveEntry]] = {}
        self._changed: dict[str, float] = {}
        self._watches: list[FakeLiveWatch] = []

    def write(self, job_id: str, stream: str, data: bytes) -> None:
        """Add output of the job's newest run.

        Raises:
            JobUnknown: no such job was submitted.
        """
        if (job := self._jobs.get(job_id)) is None:
            raise JobUnknown(f"there is no job {job_id}", [job_id])
        self._write(job, stream, data)

    def _write(self, job: FakeJob, stream: str, data: bytes) -> None:
        job_id = job.encoded.job_id
        if not job.encoded.spec.output.live or not data:
            return
        with self._lock:
            entry = LiveEntry(stream, 1, job.run, self._count(job, stream), data)
            self._entries.setdefault(job_id, []).append(entry)
            self._changed[job_id] = time.time()
            watches = [watch for watch in self._watches if watch.job_id == job_id]
        for watch in watches:
            watch.waker.wake()

    def write_rest(self, job: FakeJob, outcome: Outcome) -> None:
        """Add what the outcome has beyond what was written."""
        for stream, output in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
            self._write(job, stream, output.bytes[self._count(job, stream) :])

    def _count(self, job: FakeJob, stream: str) -> int:
        entries = self._entries.get(job.encoded.job_id, ())
        return sum(len(entry.data) for entry in entries if (entry.stream, entry.run) == (stream, job.run))

    def read(self, cursors: Mapping[str, str]) -> dict[str, LiveEntries]:
        """Return the entries after each cursor."""
        with self._lock:
            found: dict[str, LiveEntries] = {}
            for job_id, cursor in cursors.items():
                entries = self._entries.get(job_id, [])
                if new := entries[int(cursor.partition("-")[0]) :]:
                    found[job_id] = LiveEntries(new, f"{len(entries)}-0")
            return found

    def list_changed(self, batch: str, since: float) -> list[tuple[str, float]]:
        """Return the jobs of the batch that have written, by time."""
        with self._lock:
            changed = [
                (job_id, at)
                for job_id, at in self._changed.items()
                if at >= since and job_id in self._jobs and self._jobs[job_id].encoded.batch == batch
            ]
        return sorted(changed, key=lambda entry: entry[1])

    def watch(self, job_id: str, waker: Waker) -> FakeLiveWatch:
        """Wake `waker` when the job writes."""
        watch = FakeLiveWatch(self, job_id, waker)
        with self._lock:
            self._watches.append(watch)
        return watch

    def forget(self, watch: FakeLiveWatch) -> None:
        """Serve a watch no more."""
        with self._lock:
            if watch in self._watches:
                self._watches.remove(watch)
