"""A `Channel` in memory: jobs end by a function as they are submitted, or wait to be ended by a test."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SandboxError
from sandfleet_config.outcome import Attempt, Outcome, SandboxResult, StreamOutput
from sandfleet_config.scripts import MAX_DEAD_BYTES, MAX_DEAD_LETTERS
from sandfleet_config.wire import decode_job

from sandfleet.channel.capacity import refuse_full
from sandfleet.channel.ended_in_queue import new_ending
from sandfleet.channel.records import Answer, AnswerKind, BatchState, CancelState, DeadLetter, JobRecord, Look, RunState
from sandfleet.errors import JobUnknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.records import Ticket
    from sandfleet.channel.waker import Waker

Ending: TypeAlias = Outcome | SandboxResult | SandboxError | None
"""How a scripted job ends; None leaves it queued, to be ended by `FakeFleet.finish` or by a cancel."""
Handler: TypeAlias = "Callable[[SandboxSpec], Ending]"


@dataclass
class _Job:
    """One job; `outcome` is its newest run's."""

    ticket: Ticket
    queue: str
    queued: float
    outcome: Outcome | None = None
    run: int = 1
    earlier: dict[int, Outcome] = field(default_factory=dict[int, Outcome])


class _Watch:
    """A `JobWatch` and a `BatchWatch`: it wakes at the ends of the jobs that `is_awaited` names."""

    def __init__(self, channel: FakeChannel, is_awaited: Callable[[str], bool], waker: Waker) -> None:
        self._channel, self._waker = channel, waker
        self.is_awaited = is_awaited
        self._ended: list[str] | None = None
        self.is_alive = True

    def take(self) -> list[str] | None:
        ended, self._ended = self._ended, []
        return ended

    def arm(self, place: str) -> None:  # noqa: ARG002  as in `BatchWatch`
        self._waker.wake()  # something may have ended since it was read

    def note(self, job_id: str) -> None:
        if self._ended is not None:
            self._ended.append(job_id)
        self._waker.wake()

    def close(self) -> None:
        self._channel.drop_watch(self)


class FakeChannel:
    """Keeps jobs in memory; each is ended by the handler as it is submitted, after as many tries as its spec allows."""

    def __init__(self, handler: Handler, max_queued: int = 0) -> None:
        self._handler = handler
        self._max_queued = max_queued
        self._lock = threading.RLock()
        self._jobs: dict[str, _Job] = {}
        self._keys: dict[str, str] = {}
        self._ends: dict[int, tuple[str, int]] = {}
        self._ended = 0
        self._sealed: set[str] = set()
        self._watches: list[_Watch] = []
        self._dead: dict[str, DeadLetter] = {}
        self._dropped_dead = 0

    def publish(self, tickets: Sequence[Ticket], queue: str, wanted: int) -> list[Answer]:
        """Run the handler on what a worker would read of each new job."""
        with self._lock:
            self._check_room(tickets, queue, wanted)
            answers = [self._add(ticket, queue) for ticket in tickets]
            if any(answer.kind is AnswerKind.NEW for answer in answers):
                self._sealed.discard(tickets[0].batch or "")
        for answer in answers:
            if answer.kind is AnswerKind.NEW:
                self._play(answer.job_id)
        return answers

    def publish_portions(
        self, portions: Iterable[Sequence[Ticket]], queue: str, wanted: int
    ) -> Iterator[tuple[Sequence[Ticket], list[Answer]]]:
        """Publish portion by portion."""
        for tickets in portions:
            yield tickets, self.publish(tickets, queue, max(wanted, len(tickets)))
            wanted -= len(tickets)

    def _check_room(self, tickets: Sequence[Ticket], queue: str, wanted: int) -> None:
        queued = sum(job.outcome is None and job.queue == queue for job in self._jobs.values())
        is_known = any(ticket.key in self._keys for ticket in tickets)
        if self._max_queued and not is_known and queued + wanted > self._max_queued:
            raise refuse_full(queue, queued, wanted, self._max_queued)

    def _add(self, ticket: Ticket, queue: str) -> Answer:
        key = ticket.key
        job_id = self._keys.get(key, ticket.job_id) if key else ticket.job_id
        known = self._jobs.get(job_id)
        if known is None:
            self._jobs[job_id] = _Job(ticket, queue, time.time())
            if key:
                self._keys[key] = job_id
            return Answer(AnswerKind.NEW, job_id)
        if known.ticket.fingerprint == ticket.fingerprint:
            is_here = known.ticket.batch == ticket.batch
            return Answer(AnswerKind.SAME if is_here else AnswerKind.ELSEWHERE, job_id)
        return Answer(AnswerKind.CONFLICT if key in self._keys else AnswerKind.EXISTS, job_id)

    def _play(self, job_id: str) -> None:
        ticket = self._jobs[job_id].ticket
        spec = decode_job(ticket.text, len(ticket.text.encode())).spec
        attempts: list[Attempt] = []
        ending: Ending = None
        for _ in range(spec.max_attempts):
            started = datetime.now(UTC)
            try:
                ending = self._handler(spec)
            except SandboxError as error:
                ending = error
            if ending is None:
                return
            code = _new_outcome(ticket, ending).code
            attempts.append(Attempt(host="fake", worker="fake", code=code, started=started))
            if code not in spec.retry_on:
                break
        self.finish(job_id, ending, tuple(attempts))

    def finish(self, job_id: str, ending: Ending, attempts: tuple[Attempt, ...] = ()) -> None:
        """Record the job's one outcome; the first stands. One that may be tried again but has no try left is a dead letter."""
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                raise JobUnknown(f"there is no job {job_id}", [job_id])
            if ending is None or job.outcome is not None:
                return
            outcome = _new_outcome(job.ticket, ending)
            if attempts and not outcome.attempts:
                outcome = outcome.model_copy(update={"attempts": attempts})
            job.outcome = outcome = outcome.model_copy(update={"run": job.run})
            self._ended += 1
            self._ends[self._ended] = (job_id, job.run)
            if attempts and outcome.code in job.ticket.spec.retry_on:
                self._dead[job_id] = DeadLetter(
                    job_id=job_id,
                    code=outcome.code,
                    reason="no try is left",
                    at=time.time(),
                    queue=job.queue,
                    batch=job.ticket.batch,
                    line=job.ticket.line,
                    attempts=attempts,
                    run=job.run,
                )
                self._drop_old_letters()
            for watch in [watch for watch in self._watches if watch.is_awaited(job_id)]:
                watch.note(job_id)

    def _drop_old_letters(self) -> None:
        """Keep as many as Redis would."""
        sizes = {job_id: len(self._jobs[job_id].ticket.text) for job_id in self._dead}
        total = sum(sizes.values())
        while len(self._dead) > MAX_DEAD_LETTERS or total > MAX_DEAD_BYTES:
            oldest = next(iter(self._dead))
            del self._dead[oldest]
            total -= sizes[oldest]
            self._dropped_dead += 1

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        """Return what was recorded."""
        with self._lock:
            found = [self._jobs.get(job_id) for job_id in job_ids]
            return [job.outcome if job else None for job in found]

    def outcome_portions(
        self, portions: Iterable[Sequence[str]]
    ) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        """Return what was recorded, portion by portion."""
        return ((job_ids, self.outcomes(job_ids)) for job_ids in portions)

    def explain_no_claims(self) -> str:
        """Say nothing: there is no Redis."""
        return ""

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return what was left at submit."""
        with self._lock:
            found = [self._jobs.get(job_id) for job_id in job_ids]
            return [_new_record(job) if job else None for job in found]

    def look(self, job_ids: Sequence[str]) -> Look:
        """End what nobody ended within its ``queue_ttl``."""
        with self._lock:
            gone = [job_id for job_id in job_ids if job_id not in self._jobs]
            waiting = [job_id for job_id in job_ids if job_id in self._jobs and self._jobs[job_id].outcome is None]
            left = {job_id: self._seconds_left(job_id) for job_id in waiting}
            expired = [job_id for job_id, seconds in left.items() if seconds <= 0]
            for job_id in expired:
                self.finish(job_id, self._new_ending(ErrorCode.EXPIRED, job_id))
            return Look(gone, len(expired), min((seconds for seconds in left.values() if seconds > 0), default=None))

    def _seconds_left(self, job_id: str) -> float:
        job = self._jobs[job_id]
        return job.queued + job.ticket.spec.queue_ttl - time.time()

    def _new_ending(self, code: ErrorCode, job_id: str) -> Outcome:
        return new_ending(code, job_id, _new_record(self._jobs[job_id]), ())

    def find_largest_budget(self) -> int | None:
        """Return None: there are no hosts."""
        return None

    def cancel(self, job_ids: Sequence[str]) -> list[CancelState]:
        """End each job that waits as ``CANCELLED``: nothing ever runs here."""
        with self._lock:
            return [self._cancel(job_id) for job_id in job_ids]

    def _cancel(self, job_id: str) -> CancelState:
        job = self._jobs.get(job_id)
        if job is None:
            return CancelState.REQUESTED
        if job.outcome is not None:
            return CancelState.ENDED
        self.finish(job_id, self._new_ending(ErrorCode.CANCELLED, job_id))
        return CancelState.CANCELLED

    def watch_jobs(self, job_ids: Sequence[str], waker: Waker) -> _Watch:
        """Wake at the end of any of the jobs; now, too: one may have ended before."""
        found = self._add_watch(_Watch(self, frozenset(job_ids).__contains__, waker))
        waker.wake()
        return found

    def watch_batch(self, name: str, waker: Waker) -> _Watch:
        """Wake at the end of any job of the batch."""
        return self._add_watch(_Watch(self, lambda job_id: self._jobs[job_id].ticket.batch == name, waker))

    def _add_watch(self, watch: _Watch) -> _Watch:
        with self._lock:
            self._watches.append(watch)
        return watch

    def drop_watch(self, watch: _Watch) -> None:
        """Wake it no more."""
        with self._lock:
            if watch in self._watches:
                self._watches.remove(watch)

    def earlier_outcome(self, job_id: str, run: int) -> Outcome | None:
        """Return what was recorded."""
        with self._lock:
            job = self._jobs.get(job_id)
            return job.earlier.get(run) if job else None

    def read_batch(self, name: str, place: str = "", limit: int = 0) -> BatchState:
        """Count the batch's jobs, and list its ends."""
        with self._lock:
            members = self.batch_ids(name)
            ended = [outcome for job_id in members if (outcome := self._jobs[job_id].outcome) is not None]
            numbers = [number for number, (job_id, _) in self._ends.items() if self._jobs[job_id].ticket.batch == name]
            start = int(place.partition("-")[0]) if place else 0
            shown = [number for number in numbers if number > start][:limit] if place else []
            last = (shown or [start])[-1] if place else max(numbers, default=0)
            codes = Counter(outcome.code.value for outcome in ended)
            ends = [self._ends[number] for number in shown]
            return BatchState(len(members), len(ended), codes, name in self._sealed, ends, f"{last}-0")

    def seal(self, name: str) -> None:
        """Note it."""
        with self._lock:
            self._sealed.add(name)

    def forget_batch(self, name: str) -> Iterator[tuple[int, int]]:
        """Delete what has ended."""
        with self._lock:
            ids = self.batch_ids(name)
            ended = [job_id for job_id in ids if self._jobs[job_id].outcome is not None]
            self.purge_dead(ended)
            for job_id in ended:
                self._keys.pop(self._jobs[job_id].ticket.key, None)
                del self._jobs[job_id]
            self._ends = {number: end for number, end in self._ends.items() if end[0] in self._jobs}
        yield len(ended), len(ids) - len(ended)

    def batch_ids(self, name: str) -> list[str]:
        """Return the batch's jobs in the order of their submit."""
        with self._lock:
            return [job_id for job_id, job in self._jobs.items() if job.ticket.batch == name]

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return the newest."""
        with self._lock:
            return list(reversed(self._dead.values()))[:limit]

    def dead_letter(self, job_id: str) -> DeadLetter | None:
        """Return one."""
        with self._lock:
            return self._dead.get(job_id)

    def dead_runs(self, batch: str | None) -> Iterator[list[tuple[str, int]]]:
        """Yield all at once."""
        with self._lock:
            yield [
                (letter.job_id, letter.run) for letter in self._dead.values() if batch is None or letter.batch == batch
            ]

    def start_runs(self, runs: Sequence[tuple[str, int]]) -> list[RunState]:
        """Run the handler again."""
        return [self._start_run(job_id, run) for job_id, run in runs]

    def _start_run(self, job_id: str, run: int) -> RunState:
        with self._lock:
            job = self._jobs.get(job_id)
            if job is None:
                return RunState.UNKNOWN
            if job.outcome is None or job.run != run:
                return RunState.LATER
            if self._dead.pop(job_id, None) is None:
                return RunState.NO_MESSAGE
            job.earlier[run] = job.outcome
            job.outcome, job.queued, job.run = None, time.time(), run + 1
            self._ends = {number: end for number, end in self._ends.items() if end[0] != job_id}
        self._play(job_id)
        return RunState.QUEUED

    def purge_dead(self, job_ids: Sequence[str] | None) -> int:
        """Forget letters."""
        with self._lock:
            dropped = [job_id for job_id in (list(self._dead) if job_ids is None else job_ids) if job_id in self._dead]
            for job_id in dropped:
                del self._dead[job_id]
            return len(dropped)

    def count_dropped_dead(self) -> int:
        """Return the count."""
        return self._dropped_dead

    def has_workers(self, timeout_seconds: float) -> bool:  # noqa: ARG002  as in `Channel`
        """Claim that there are."""
        return True

    def ping(self) -> None:
        """Return."""

    def close(self) -> None:
        """Keep everything: a `Fleet` may be used after its close, too."""

    def specs(self) -> list[SandboxSpec]:
        """Return the specs in the order of their submission."""
        with self._lock:
            return [job.ticket.spec for job in self._jobs.values()]

    def job_ids(self) -> list[str]:
        """Return the ids in the order of their submission."""
        with self._lock:
            return list(self._jobs)


def _new_record(job: _Job) -> JobRecord:
    state = "ended" if job.outcome else "queued"
    return job.ticket.record.model_copy(update={"queue": job.queue, "state": state, "run": job.run})


def _new_outcome(ticket: Ticket, ending: Outcome | SandboxResult | SandboxError) -> Outcome:
    known: dict[str, Any] = {
        "batch": ticket.batch,
        "labels": ticket.spec.labels,
        "spec_sha256": ticket.spec_hash,
    }
    match ending:
        case Outcome():
            return ending.model_copy(update={"job_id": ticket.job_id, **known})
        case SandboxError():
            if ending.outcome is not None:
                return ending.outcome.model_copy(update={"job_id": ticket.job_id, **known})
            return Outcome.of(ending.code, ticket.job_id, ending.message, **known)
        case _:
            return Outcome.of(
                ErrorCode.EXIT_NONZERO if ending.exit_code else ErrorCode.OK,
                ticket.job_id,
                exit_code=ending.exit_code,
                stdout=StreamOutput.of(ending.stdout.encode()),
                stderr=StreamOutput.of(ending.stderr.encode()),
                duration=ending.duration,
                **known,
            )
