"""The `Overview` of `FakeChannel`: its batches and jobs, and their next runs."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
from sandfleet_config.codes import ErrorCode
from sandfleet_config.scripts import step_of
from sandfleet_config.wire import decode_job

from sandfleet.channel.job_facts import JobFacts
from sandfleet.channel.overview import BatchEntry, EndedJob, ImageChoice, NextRun, Queued
from sandfleet.channel.records import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from threading import RLock

    from sandfleet_config.wire import JobRequest

    from sandfleet.testing.fake_dead_letters import FakeDeadLetters
    from sandfleet.testing.fake_job import FakeJob


class FakeOverview:
    """Reads the jobs of a `FakeChannel` under its lock; `execute` calls the handler for a job."""

    def __init__(
        self,
        lock: RLock,
        jobs: dict[str, FakeJob],
        sealed: Collection[str],
        dead: FakeDeadLetters,
        execute: Callable[[str], None],
    ) -> None:
        self._lock = lock
        self._jobs = jobs
        self._sealed = sealed
        self._dead = dead
        self._execute = execute

    def list_batches(self, first: int, count: int) -> list[BatchEntry]:
        """Return the batches, the last used first."""
        with self._lock:
            used: dict[str, float] = {}
            for job in self._jobs.values():
                if job.encoded.batch is not None:
                    used[job.encoded.batch] = max(job.queued, used.get(job.encoded.batch, 0.0))
            names = sorted(used, key=used.__getitem__, reverse=True)
            return [self.batch_entry(name) for name in names[first : first + count]]

    def batch_entry(self, name: str) -> BatchEntry:
        """Count the jobs of a batch."""
        with self._lock:
            jobs = self._list_jobs(name)
            ended = self._list_ended(name)
            codes = Counter(job.code for job in ended)
            used = max((job.queued for job in jobs), default=0.0)
            last_end = ended[-1].at if ended else 0.0
            return BatchEntry(name, len(jobs), len(ended), codes, name in self._sealed, used, last_end)

    def _list_jobs(self, name: str) -> list[FakeJob]:
        return [job for job in self._jobs.values() if job.encoded.batch == name]

    def _list_ended(self, name: str) -> list[EndedJob]:
        ended = [
            EndedJob(job.encoded.job_id, job.run, job.outcome.code.value, job.ended)
            for job in self._list_jobs(name)
            if job.outcome is not None
        ]
        return sorted(ended, key=lambda job: job.at)

    def member_pages(self, name: str) -> Iterator[list[str]]:
        """Yield all ids at once."""
        with self._lock:
            yield [job.encoded.job_id for job in self._list_jobs(name)]

    def ended_pages(self, name: str) -> Iterator[list[EndedJob]]:
        """Yield all ends at once."""
        with self._lock:
            found = self._list_ended(name)
        if found:
            yield found

    def newest_ended(self, name: str, count: int) -> list[EndedJob]:
        """Return the newest ends, newest first."""
        with self._lock:
            return self._list_ended(name)[::-1][:count]

    def facts(self, job_ids: Sequence[str]) -> list[JobFacts | None]:
        """Return the facts of jobs."""
        with self._lock:
            found = [self._jobs.get(job_id) for job_id in job_ids]
            return [_new_facts(job) if job else None for job in found]

    def find_queued(self, job: JobFacts, *, counts: bool = True) -> Queued:  # noqa: ARG002  as in `Overview`
        """Return the first place: nothing runs here."""
        return Queued(0, 0, 1, is_served=True)

    def kept_requests(self, job_ids: Sequence[str]) -> list[JobRequest | None]:
        """Return what the jobs ran, of those that did not end OK."""
        with self._lock:
            kept = [self._jobs[job_id] if self._is_kept(job_id) else None for job_id in job_ids]
            return [decode_job(job.encoded.text, len(job.encoded.text.encode())) if job else None for job in kept]

    def are_kept(self, job_ids: Sequence[str]) -> list[bool]:
        """Say which jobs have ended, and not OK."""
        with self._lock:
            return [self._is_kept(job_id) for job_id in job_ids]

    def _is_kept(self, job_id: str) -> bool:
        job = self._jobs.get(job_id)
        return job is not None and job.outcome is not None and job.outcome.code is not ErrorCode.OK

    def count_dropped_specs(self) -> int:
        """Return 0: memory is not bounded here."""
        return 0

    def start_runs(self, runs: Sequence[NextRun], *, images: ImageChoice = "kept") -> list[RunState]:  # noqa: ARG002  no images here
        """Start the next run of each job: call the handler again."""
        return [self._start_run(run) for run in runs]

    def _start_run(self, wanted: NextRun) -> RunState:
        with self._lock:
            job = self._jobs.get(wanted.job_id)
            if job is None:
                return RunState.UNKNOWN
            if job.outcome is None or job.run != wanted.run:
                return RunState.LATER
            if job.outcome.code is ErrorCode.OK:
                return RunState.NO_MESSAGE
            self._dead.remove(wanted.job_id)
            job.earlier[job.run] = job.outcome
            job.outcome, job.queued, job.run = None, time.time(), job.run + 1
            if wanted.changed is not None:
                job.encoded = msgspec.structs.replace(wanted.changed, fingerprint=job.encoded.fingerprint)
        self._execute(wanted.job_id)
        return RunState.QUEUED

    def forget_pins(self, name: str) -> None:
        """Do nothing: no image is looked up here."""


def _new_facts(job: FakeJob) -> JobFacts:
    encoded, outcome = job.encoded, job.outcome
    return JobFacts(
        job_id=encoded.job_id,
        state="ended" if outcome else "queued",
        code=outcome.code if outcome else None,
        run=job.run,
        batch=encoded.batch,
        queue=job.queue,
        step=step_of(encoded.spec.priority),
        labels=encoded.spec.labels,
        line=encoded.line,
        spec_sha256=encoded.spec_hash,
        image=encoded.spec.image,
        attempts=outcome.attempts if outcome else (),
        max_attempts=encoded.spec.max_attempts,
        queue_ttl=encoded.spec.queue_ttl,
        submitted=job.queued,
        ended=job.ended if outcome else 0.0,
    )
