"""A `Channel` in memory: a function ends jobs as they are submitted, or a test ends them later."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Attempt, Outcome

from sandfleet.channel.capacity import new_queue_full
from sandfleet.channel.ended_in_queue import new_ending
from sandfleet.channel.overview import NextRun
from sandfleet.channel.records import (
    CancelState,
    ExpiryCheck,
    JobRecord,
    RunState,
    SubmitState,
    Submitted,
)
from sandfleet.errors import JobUnknown
from sandfleet.testing.fake_batches import FakeBatches
from sandfleet.testing.fake_control import FakeControl
from sandfleet.testing.fake_fleet_state import FakeFleetState
from sandfleet.testing.fake_job import Ending, FakeJob, Handler, call_handler, new_outcome
from sandfleet.testing.fake_live import FakeLive
from sandfleet.testing.fake_overview import FakeOverview
from sandfleet.testing.fake_store import FakeStore
from sandfleet.testing.fake_watches import FakeWatch, FakeWatches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.records import EncodedJob
    from sandfleet.channel.waker import Waker


class FakeChannel(FakeBatches):
    """Keeps jobs in memory.

    The handler ends each as it is submitted, after as many attempts as its spec allows.
    """

    def __init__(self, handler: Handler, max_queued: int = 0) -> None:
        super().__init__()
        self.handler = handler
        self._max_queued = max_queued
        self._ended = 0
        self._watches = FakeWatches()
        self._waiting: dict[str, None] = {}
        """Jobs that may not start yet, in the order of their submit."""
        self._is_starting = False
        self._changes = 0
        self.control = FakeControl(self._jobs, self._sealed, self._start_waiting)
        self.overview = FakeOverview(self._lock, self._jobs, self._sealed, self._dead, self._execute_again)
        self.live, self.fleet_state = FakeLive(self._lock, self._jobs), FakeFleetState(self._lock, self._jobs)
        self.store = FakeStore()
        self.objects = self.store.new_objects()

    def publish(self, jobs: Sequence[EncodedJob], queue: str, wanted: int) -> list[Submitted]:
        """Add jobs, and call the handler for each new one."""
        with self._lock:
            self._check_capacity(jobs, queue, wanted)
            for job in jobs:
                self.control.refuse(job)
            found = [self._add(job, queue) for job in jobs]
            new = [submitted.job_id for submitted in found if submitted.state is SubmitState.NEW]
            if new:
                self._sealed.discard(jobs[0].batch or "")
        started = [self._start(job_id) for job_id in new]
        if not all(started):
            self._start_waiting()
        return found

    def publish_chunks(
        self, chunks: Iterable[Sequence[EncodedJob]], queue: str, wanted: int
    ) -> Iterator[tuple[Sequence[EncodedJob], list[Submitted]]]:
        """Publish chunk by chunk."""
        for jobs in chunks:
            yield jobs, self.publish(jobs, queue, max(wanted, len(jobs)))
            wanted -= len(jobs)

    def _check_capacity(self, jobs: Sequence[EncodedJob], queue: str, wanted: int) -> None:
        queued = sum(job.outcome is None and job.queue == queue for job in self._jobs.values())
        is_known = any(job.key in self._keys for job in jobs)
        if self._max_queued and not is_known and queued + wanted > self._max_queued:
            raise new_queue_full(queue, queued, wanted, self._max_queued)

    def _add(self, job: EncodedJob, queue: str) -> Submitted:
        key = job.key
        job_id = self._keys.get(key, job.job_id) if key else job.job_id
        known = self._jobs.get(job_id)
        if known is None:
            self._jobs[job_id] = FakeJob(job, queue, time.time())
            if key:
                self._keys[key] = job_id
            return Submitted(SubmitState.NEW, job_id)
        if known.encoded.fingerprint == job.fingerprint:
            is_here = known.encoded.batch == job.batch
            return Submitted(SubmitState.SAME if is_here else SubmitState.ELSEWHERE, job_id)
        return Submitted(SubmitState.CONFLICT if key in self._keys else SubmitState.EXISTS, job_id)

    def _start_waiting(self) -> None:
        """Start each job that may start; its end may let another start, or stop its batch."""
        with self._lock:
            killed = self.control.list_killed()
        for job_id, why in killed:
            self._finish_queued(ErrorCode.CANCELLED, job_id, why)
        with self._lock:
            self._changes += 1
            if self._is_starting or not self._waiting:
                return
            self._is_starting = True
        try:
            is_done = False
            while not is_done:
                seen = self._changes
                started = sum(self._start(job_id) for job_id in list(self._waiting))
                with self._lock:
                    is_done = not started and seen == self._changes
                    self._is_starting = not is_done
        except BaseException:
            self._is_starting = False
            raise

    def _start(self, job_id: str) -> bool:
        """Start a job or end it; return False if it goes on waiting."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None or job.outcome is not None or job.is_started:
                self._waiting.pop(job_id, None)
                return False
            ended = self.control.find_end(job)
            if ended is None and self.control.must_wait(job):
                self._waiting[job_id] = None
                return False
            job.is_started = True
            self._waiting.pop(job_id, None)
        if ended is None:
            self._execute(job_id)
        else:
            self._finish_queued(ended[0], job_id, ended[1])
        return True

    def _execute(self, job_id: str) -> None:
        self.finish(job_id, *call_handler(self.handler, self._jobs[job_id].encoded, self.store))

    def finish(self, job_id: str, ending: Ending, attempts: tuple[Attempt, ...] = ()) -> None:
        """Record a job's outcome, unless it has one.

        A job that may be retried and has no attempt left is a dead letter.

        Raises:
            JobUnknown: no such job was submitted.
        """
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                raise JobUnknown(f"there is no job {job_id}", [job_id])
            if ending is None or job.outcome is not None:
                return
            outcome = new_outcome(job.encoded, ending, self.store)
            if attempts and not outcome.attempts:
                outcome = outcome.model_copy(update={"attempts": attempts})
            self.live.write_rest(job, outcome)
            job.outcome = outcome = outcome.model_copy(update={"run": job.run})
            job.ended = time.time()
            self._ended += 1
            self._entries[self._ended] = (job_id, job.run)
            if attempts and outcome.code in job.encoded.spec.retry_on:
                self._dead.add(job, outcome, attempts)
            self.control.note_end(job, outcome.code)
            self._watches.notify(job_id)
            self._tell_if_done(job.encoded.batch)
        self._start_waiting()

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        """Return the outcomes of the newest runs."""
        with self._lock:
            found = [self._jobs.get(job_id) for job_id in job_ids]
            return [job.outcome if job else None for job in found]

    def outcome_chunks(self, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        """Return outcomes chunk by chunk."""
        return ((job_ids, self.outcomes(job_ids)) for job_ids in chunks)

    def earlier_outcome(self, job_id: str, run: int) -> Outcome | None:
        """Return the outcome of an earlier run."""
        with self._lock:
            job = self._jobs.get(job_id)
            return job.earlier.get(run) if job else None

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return the jobs' records."""
        with self._lock:
            found = [self._jobs.get(job_id) for job_id in job_ids]
            return [self.control.new_record(job) if job else None for job in found]

    def explain_no_claims(self) -> str:
        """Return the empty string: no Redis can be full."""
        return ""

    def find_largest_budget(self) -> int | None:
        """Return None: there are no hosts."""
        return None

    def expire_overdue(self, job_ids: Sequence[str]) -> ExpiryCheck:
        """End jobs whose ``queue_ttl`` is over, and stop batches whose deadline is."""
        with self._lock:
            known = {job_id: self._jobs[job_id] for job_id in job_ids if job_id in self._jobs}
            unknown = [job_id for job_id in job_ids if job_id not in known]
            waiting = {job_id: job for job_id, job in known.items() if job.outcome is None}
            for job_id, job in waiting.items():
                if job.count_seconds_left() <= 0:
                    self._finish_queued(ErrorCode.EXPIRED, job_id)
            self.control.check_deadlines()
        self._start_waiting()
        with self._lock:
            left = [self.control.count_seconds_left(job) for job in waiting.values() if job.outcome is None]
            next_expiry = min((seconds for seconds in left if seconds > 0), default=None)
            return ExpiryCheck(unknown, len(waiting) - len(left), next_expiry)

    def _finish_queued(self, code: ErrorCode, job_id: str, why: str = "") -> None:
        outcome = new_ending(code, job_id, self._jobs[job_id].new_record(), ())
        self.finish(job_id, outcome.model_copy(update={"message": why or outcome.message}))

    def cancel(self, job_ids: Sequence[str]) -> list[CancelState]:
        """End each queued job as ``CANCELLED``; nothing runs here."""
        with self._lock:
            return [self._cancel(job_id) for job_id in job_ids]

    def _cancel(self, job_id: str) -> CancelState:
        job = self._jobs.get(job_id)
        if job is None:
            return CancelState.REQUESTED
        if job.outcome is not None:
            return CancelState.ENDED
        self._finish_queued(ErrorCode.CANCELLED, job_id)
        return CancelState.CANCELLED

    def watch_jobs(self, job_ids: Sequence[str], waker: Waker) -> FakeWatch:
        """Wake the waker when one of the jobs ends; and now, since one may have ended before."""
        watch = self._watches.add(frozenset(job_ids).__contains__, waker)
        waker.wake()
        return watch

    def watch_batch(self, name: str, waker: Waker) -> FakeWatch:
        """Wake the waker when a job of the batch ends."""
        return self._watches.add(lambda job_id: self._jobs[job_id].encoded.batch == name, waker)

    def start_runs(self, runs: Sequence[tuple[str, int]], *, resolves_images: bool = False) -> list[RunState]:  # noqa: ARG002  no images here
        """Start the next run of each job: call the handler again."""
        return self.overview.start_runs([NextRun(*run) for run in runs])

    def _execute_again(self, job_id: str) -> None:
        with self._lock:
            self._jobs[job_id].is_started = False
            self.control.note_retry(self._jobs[job_id])
            self._entries = {number: entry for number, entry in self._entries.items() if entry[0] != job_id}
        self._start(job_id)

    def has_workers(self, timeout_seconds: float) -> bool:  # noqa: ARG002  as in `Channel`
        """Return True, as if there were workers."""
        return True

    def ping(self) -> None:
        """Return: memory always works."""

    def close(self) -> None:
        """Do nothing: a `Fleet` may be used after its close."""

    def specs(self) -> list[SandboxSpec]:
        """Return the specs in the order of their submit."""
        with self._lock:
            return [job.encoded.spec for job in self._jobs.values()]

    def job_ids(self) -> list[str]:
        """Return the ids in the order of their submit."""
        with self._lock:
            return list(self._jobs)
