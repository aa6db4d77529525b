"""Limits of batches, and jobs that wait for others, in `FakeChannel`."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandfleet_config.batch_limits import BatchLimits
from sandfleet_config.codes import ErrorCode
from sandfleet_config.spec import LAST_PRIORITY
from sandfleet_config.units import format_count

from sandfleet.channel.batch_control import LimitsState
from sandfleet.channel.publisher import new_after_refusal
from sandfleet.errors import BatchUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from sandfleet_config.after import AfterSpec

    from sandfleet.channel.records import EncodedJob, JobRecord
    from sandfleet.testing.fake_job import FakeJob


@dataclass
class _State:
    """The limits of one batch, and what has become of them."""

    limits: BatchLimits = field(default_factory=BatchLimits)
    deadline: float | None = None
    """Unix time; a stop that is lifted leaves none."""
    failures: int = 0
    round: int = 0
    """How often the failures were counted anew."""
    is_on_hold: bool = False
    stop_code: ErrorCode | None = None
    stopped: str = ""
    must_kill: bool = False

    @property
    def allowed(self) -> int | None:
        """The number of failures that stops the batch, None without such a limit."""
        return 1 if self.limits.fail_fast else self.limits.max_failures

    def stop(self, code: ErrorCode, why: str) -> None:
        """Let no more jobs start."""
        self.stop_code, self.stopped, self.must_kill = code, why, self.limits.on_stop == "kill"

    def lift_stop(self) -> None:
        """Let jobs start again, if it has stopped: its deadline is gone, and failures are counted anew."""
        if self.stopped:
            self.stop_code, self.stopped, self.deadline = None, "", None
            self.failures, self.round = 0, self.round + 1


class FakeControl:
    """A `BatchControl` in memory; `start_waiting` starts the jobs that may start now."""

    def __init__(self, jobs: Mapping[str, FakeJob], sealed: Iterable[str], start_waiting: Callable[[], None]) -> None:
        self._jobs, self._sealed, self._start_waiting = jobs, sealed, start_waiting
        self._states: dict[str, _State] = {}

    def set_limits(self, name: str, limits: BatchLimits, *, is_submit: bool) -> bool:
        """Begin with new limits."""
        known = self._states.get(name)
        is_unfinished = any(job.outcome is None for job in self._members(name))
        has_deadline = limits.deadline is not None
        is_same = known is not None and known.limits == limits and (known.deadline is not None) == has_deadline
        if is_submit and is_same and is_unfinished:
            return False
        until = None if limits.deadline is None else time.time() + limits.deadline
        rounds, is_on_hold = (known.round + 1, known.is_on_hold) if known else (0, False)
        self._states[name] = _State(limits, until, round=rounds, is_on_hold=is_on_hold)
        self._start_waiting()
        return True

    def read_limits(self, name: str) -> LimitsState:
        """Return what is in force."""
        state = self._states.get(name, _State())
        waiting = [job for job in self._members(name) if not job.is_started and job.outcome is None]
        return LimitsState(state.limits, state.failures, state.stopped, state.is_on_hold, len(waiting), state.deadline)

    def hold(self, name: str) -> None:
        """Start no more jobs."""
        self._find(name).is_on_hold = True

    def release(self, name: str) -> int:
        """Start the jobs that wait."""
        state = self._find(name)
        waiting = [job for job in self._members(name) if not job.is_started and job.outcome is None]
        state.is_on_hold = False
        state.lift_stop()
        self._start_waiting()
        return len(waiting)

    def forget(self, name: str) -> None:
        """Forget the limits of a batch that is gone."""
        self._states.pop(name, None)

    def note_retry(self, job: FakeJob) -> None:
        """End the stop of the job's batch, since it runs again, and count its failure no more."""
        state = self._states.get(job.encoded.batch or "")
        if state is not None:
            state.lift_stop()
            if job.failed == state.round:
                state.failures = max(0, state.failures - 1)
        job.failed = None

    def list_killed(self) -> list[tuple[str, str]]:
        """Return (job id, why) of what runs in batches that have stopped now and kill; once."""
        found: list[tuple[str, str]] = []
        for name, state in self._states.items():
            if state.must_kill:
                state.must_kill = False
                running = (job for job in self._members(name) if job.is_started and job.outcome is None)
                found += [(job.encoded.job_id, state.stopped) for job in running]
        return found

    def set_priority(self, name: str, priority: int) -> int:
        """Count the jobs that wait: all of them start in the order of their submit here."""
        assert 0 <= priority <= LAST_PRIORITY
        return sum(not job.is_started and job.outcome is None for job in self._members(name))

    def find_unknown(self, after: AfterSpec) -> str:
        """Return the first job or batch that was never submitted."""
        missing = [f"job {job_id}" for job_id in after.jobs if job_id not in self._jobs]
        missing += [f"batch {name}" for name in after.batches if not self._members(name)]
        return missing[0] if missing else ""

    def refuse(self, job: EncodedJob) -> None:
        """Refuse a job that waits for what does not exist, or for itself.

        Raises:
            SpecInvalid: it does.
        """
        if not job.spec.after:
            return
        if unknown := self.find_unknown(job.spec.after):
            raise new_after_refusal("unknown", *unknown.split(" ", 1))
        if job.batch and any(
            job.batch in other.encoded.spec.after.batches and other.outcome is None for other in self._jobs.values()
        ):
            raise new_after_refusal("awaited", job.batch)

    def find_end(self, job: FakeJob) -> tuple[ErrorCode, str] | None:
        """Return how a job ends that may not start any more, and why; None if it may."""
        state = self._states.get(job.encoded.batch or "")
        if state is not None:
            self._check_deadline(job.encoded.batch or "", state)
            if state.stop_code is not None:
                return state.stop_code, state.stopped
        found = self._check_after(job)
        return (ErrorCode.CANCELLED, found) if found else None

    def must_wait(self, job: FakeJob) -> str:
        """Return why the job may not start now; empty if it may."""
        after, name = job.encoded.spec.after, job.encoded.batch or ""
        if any(other.outcome is None for other in self._targets(after)) or set(after.batches) - set(self._sealed):
            return "waits until " + ", ".join([*after.batches, *after.jobs]) + " has ended OK (after)"
        state = self._states.get(name)
        if state is None:
            return ""
        if state.is_on_hold:
            return f"batch {name} is held: sandfleet batch release {name}"
        running = sum(other.is_started and other.outcome is None for other in self._members(name))
        most = state.limits.at_most
        return (
            f"batch {name} runs at most {format_count(most, 'job')} at once"
            if most is not None and running >= most
            else ""
        )

    def new_record(self, job: FakeJob) -> JobRecord:
        """Return the job's record, with why it waits."""
        why = "" if job.is_started or job.outcome else self.must_wait(job)
        return job.new_record().model_copy(update={"why": why})

    def note_end(self, job: FakeJob, code: ErrorCode) -> None:
        """Count a failure; it may stop the batch."""
        name = job.encoded.batch or ""
        state = self._states.get(name)
        if state is None:
            return
        self._check_deadline(name, state)
        if state.allowed is None or state.stop_code is not None or code in {ErrorCode.OK, ErrorCode.CANCELLED}:
            return
        state.failures, job.failed = state.failures + 1, state.round
        if state.failures >= state.allowed:
            option = "--fail-fast" if state.limits.fail_fast else f"--max-failures {state.allowed}"
            state.stop(ErrorCode.CANCELLED, f"batch {name} stopped: {state.failures} of its jobs failed ({option})")

    def check_deadlines(self) -> None:
        """Stop the batches whose deadline is over, and that have jobs that have not ended."""
        for name, state in self._states.items():
            if state.deadline is not None and any(job.outcome is None for job in self._members(name)):
                self._check_deadline(name, state)

    def count_seconds_left(self, job: FakeJob) -> float:
        """Return the seconds until the job expires, or its batch stops by its deadline."""
        state = self._states.get(job.encoded.batch or "", _State())
        if state.deadline is None or state.stop_code is not None:
            return job.count_seconds_left()
        return min(job.count_seconds_left(), state.deadline - time.time())

    def _check_deadline(self, name: str, state: _State) -> None:
        if state.stop_code is None and state.deadline is not None and time.time() > state.deadline:
            why = f"its deadline is over (--deadline {state.limits.deadline_text})"
            state.stop(ErrorCode.EXPIRED, f"batch {name} stopped: {why}")

    def _check_after(self, job: FakeJob) -> str:
        for other in self._targets(job.encoded.spec.after):
            if other.outcome is not None and other.outcome.code is not ErrorCode.OK:
                why = f"job {other.encoded.job_id} ended with {other.outcome.code.value}"
                return f"cancelled before it started: {why}, and it was to start after that had ended OK"
        return ""

    def _targets(self, after: AfterSpec) -> list[FakeJob]:
        if not after:
            return []
        jobs = [self._jobs[job_id] for job_id in after.jobs if job_id in self._jobs]
        return jobs + [job for name in after.batches for job in self._members(name)]

    def _members(self, name: str) -> list[FakeJob]:
        return [job for job in self._jobs.values() if job.encoded.batch == name]

    def _find(self, name: str) -> _State:
        if not self._members(name):
            raise BatchUnknown(f"there is no batch {ascii(name)[1:-1]}, or it ended too long ago")
        return self._states.setdefault(name, _State())
