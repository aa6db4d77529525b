"""The one task: a job's whole life, from its message to its outcome."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from celery import Task
from celery.exceptions import Reject
from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.errors import ERROR_CLASSES, Cancelled, Expired, SandboxError, SpecInvalid
from sandfleet_config.outcome import Outcome, Timing
from sandfleet_config.queues import TASK_NAME
from sandfleet_config.wire import encode_needs, join_needs, spec_sha256
from sandfleet_config.words import CANCELLED_QUEUED

from sandfleet_worker.delivery.claim import Flag, PutBack
from sandfleet_worker.job_handle import current_job
from sandfleet_worker.job_start import JobStart
from sandfleet_worker.sandbox.policy import admit

if TYPE_CHECKING:
    from collections.abc import Callable

    from celery import Celery
    from sandfleet_config.spec import SandboxSpec
    from sandfleet_config.wire import JobRequest

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.read_message import Delivery
    from sandfleet_worker.host import Host
    from sandfleet_worker.job_handle import JobHandle
    from sandfleet_worker.sandbox.policy import Admitted

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 30.0


class Requeued(Reject):
    """This run has no outcome: the job is back in its queue."""


class Fenced(Reject):
    """Another worker has taken the job over: this run leaves neither a result nor a final event."""


class JobEnd:
    """What a job that ran to its own end returns to Celery: the outcome for the result store, two words for people.

    Celery's ``saferepr`` prints dicts and strings whatever their class says, so this is neither; kombu's encoder asks `__json__`.
    """

    __slots__ = ("_outcome",)

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def __repr__(self) -> str:
        """Say ``OK`` or ``EXIT_NONZERO exit 3``: this reaches logs, events and Flower, the program's output must not."""
        code, text = self._outcome.code.value, self._outcome.to_summary()
        return text if text.startswith(code) else f"{code} {text}"

    @property
    def outcome(self) -> Outcome:
        """The outcome itself."""
        return self._outcome

    def __json__(self) -> dict[str, Any]:
        """Return what is stored."""
        return self._outcome.to_json()


class RunTask(Task):  # type: ignore[type-arg]  # generic in the stubs only
    """``sandfleet.run``. A program that ran to its own end is Celery's SUCCESS, everything else raises its code's exception."""

    name = TASK_NAME
    Strategy = "sandfleet_worker.celery_worker.requests:strategy"
    acks_late = True
    ignore_result = False
    max_retries = 0
    throws = (SandboxError,)
    host: Host | None = None

    def run(self, delivery: Delivery) -> JobEnd:
        """Run the job of `delivery`; its claim goes with the request, and is settled here or by the result backend.

        Raises:
            SandboxError: the class of the outcome's code, with the outcome.
            Requeued: another attempt follows, or the worker stops.
            Fenced: another worker has taken over.
        """
        assert self.host is not None  # the consumer does not start without
        job, intake = current_job(), self.host.intake
        properties: Any = self.request.properties
        claim = intake.held.find(properties["delivery_tag"])
        if claim is None:
            raise Fenced(f"job {job.job_id} is not held here")
        life = Life(self.host, job, delivery, claim)
        outcome = life.run()
        claim = life.claim
        intake.held.free_slot(claim)
        why = life.find_put_back()
        if why is not None and intake.has_other_host(why.needs, claim):
            _log("put_back", job, "is put back for another host: %s", why.text)
            self._requeue(claim, outcome, lambda: intake.ledger.put_back(claim, why, life.host_name))
        if outcome.code is ErrorCode.WORKER_LOST and job.is_withdrawn:
            outcome = self._withdraw(life, outcome)
        elif life.may_try_again(outcome.code):
            delay = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** max(0, claim.charged_count - 1))
            _log("retried", job, "is tried again in %g s: %s", delay, outcome.to_summary())
            self._requeue(claim, outcome, lambda: intake.ledger.retry(claim, outcome.code, delay, life.host_name))
        intake.held.replace(replace(claim, reason=life.find_dead_letter_reason(outcome)))
        _log("ended", job, "ended: %s", outcome.to_summary())
        if outcome.code.is_own_end:
            return JobEnd(outcome)
        raise ERROR_CLASSES[outcome.code].of(outcome.message, outcome.to_json(), life.faults)

    def _withdraw(self, life: Life, outcome: Outcome) -> Outcome:
        """Give back a job that the worker stops, at no cost; return the outcome of one that has started and may not again.

        Raises:
            Requeued: the job is back in its queue.
            Fenced: another worker has taken over.
        """
        assert self.host is not None
        claim, job, ledger = life.claim, life.job, self.host.intake.ledger
        if not life.has_started:
            _log("withdrawn", job, "goes back to the queue, it had not started: %s", outcome.message)
            self._requeue(claim, outcome, lambda: ledger.give_back(claim))
        why = life.find_why_no_restart()
        if not why:
            _log("withdrawn", job, "goes back to the queue: %s", outcome.message)
            self._requeue(claim, outcome, lambda: ledger.release(claim))
        # Whatever Redis hears of this, such a job never goes back to the queue.
        self.host.intake.tell_drained(claim)
        cut = tuple(replace(last, charged=False) for last in outcome.attempts[-1:])
        message = f"drained: the worker stopped and {why}"
        return outcome.model_copy(update={"message": message, "attempts": outcome.attempts[:-1] + cut})

    def _requeue(self, claim: Claim, outcome: Outcome, act: Callable[[], bool]) -> NoReturn:
        assert self.host is not None
        if self.host.intake.settle(claim, act):
            raise Requeued(outcome.to_summary(), requeue=True)
        raise Fenced(f"job {claim.job_id} was taken over")


def run_task(app: Celery) -> RunTask:
    """Return the app's one task."""
    task = app.tasks[TASK_NAME]
    if not isinstance(task, RunTask):
        msg = f"{TASK_NAME} of this app is not ours"
        raise TypeError(msg)
    return task


class Life:
    """One run of one job on this host."""

    def __init__(self, host: Host, job: JobHandle, delivery: Delivery, claim: Claim) -> None:
        self._host, self.job, self._delivery = host, job, delivery
        self._start = JobStart(host.intake, host.slots, claim, job.cancellation, self._log_start)
        self._taken = time.time()
        self._retry_on = frozenset[ErrorCode]()
        self._has_crashed = False
        self._facts: dict[str, Any] = {"host": host.name}
        self.faults: list[dict[str, str]] = []
        self._lacks = ""

    @property
    def claim(self) -> Claim:
        """The claim, with what is known of the job's attempts by now."""
        return self._start.claim

    @property
    def has_started(self) -> bool:
        """Whether the program may have started."""
        return self._start.has_started

    @property
    def host_name(self) -> str:
        """The host this run is on."""
        return self._host.name

    def run(self) -> Outcome:
        """Walk the job's whole way; every way out is an outcome."""
        host, job = self._host, self.job
        try:
            self._refuse_ended()
            request = self._delivery.open()
            self._remember(request)
            limits = self._admit(request.spec).shortened(job.soft_seconds, job.hard_seconds)
            job.cancellation.raise_if_set()
            queued = self._count_queued()
            ending = host.runner.execute(limits, cancel=job.cancellation, hooks=self._start)
            self._note_failed_wait()
            attempts = self.claim.end_attempts(ending.verdict.code)
            self._has_crashed = ending.verdict.is_crash
            return ending.to_outcome(job_id=job.job_id, queued=queued, attempts=attempts, **self._facts)
        except SandboxError as error:
            self.faults = error.errors
            if error.code is ErrorCode.IMAGE_NOT_FOUND:
                self._lacks = f"needs an image that {host.name} does not have"
            return self._end(error.code, error.message)
        except Exception:
            log.exception("job %s met a fault of ours", job.job_id, extra={"action": "internal", "job_id": job.job_id})
            return self._end(ErrorCode.INTERNAL, f"a fault in sandfleet itself: see the log of worker {host.worker}")

    def _log_start(self) -> None:
        run = f" (run {self.claim.run})" if self.claim.run > 1 else ""
        _log("started", self.job, "starts%s: %s", run, self._delivery.log_line)

    def find_why_no_restart(self) -> str:
        """Say why the job may not start again after a start that is not charged; empty where it may."""
        if self.claim.is_last_start:
            return self.claim.describe_limit()
        return "" if ErrorCode.WORKER_LOST in self._retry_on else "its retry_on does not name WORKER_LOST"

    def _admit(self, spec: SandboxSpec) -> Admitted:
        """Return the limits that the job gets here; a wish above this host's ceilings may be granted by another."""
        try:
            return admit(spec, self._host.abilities.find_settings())
        except SpecInvalid:
            self._lacks = f"needs more than {self.host_name} lets a job have"
            raise

    def find_put_back(self) -> PutBack | None:
        """Return why another host may run the job where this one cannot, known before its start; None of any other end."""
        request = self._delivery.request
        if not self._lacks or request is None:
            return None
        needs = join_needs(request.contract, encode_needs(request.spec))
        return PutBack(self._lacks, needs, request.spec.queue_ttl)

    def may_try_again(self, code: ErrorCode) -> bool:
        """Whether `code` calls for another attempt and one is left: trouble of ours, or what else the spec's `retry_on` names."""
        claim = self.claim
        if claim.flag is not Flag.START or claim.is_last_attempt:
            return False
        if self._has_crashed and any(attempt.code is code for attempt in claim.attempts[:-1]):
            return False  # it crashes every sandbox that it gets: a fault of gVisor's that the job meets
        return code in self._retry_on

    def find_dead_letter_reason(self, outcome: Outcome) -> str:
        """Say why the job belongs to the dead letters: it would be tried again, or is trouble of ours, and no try is left."""
        code, claim = outcome.code, self.claim
        if code.category is not Category.HOST and code not in self._retry_on:
            return ""
        if outcome.attempts and not outcome.attempts[-1].charged:
            return f"{code.value}: {outcome.message}"
        return f"{code.value} after {claim.charged_count} of {claim.max_attempts} attempts: {outcome.message}"

    def _refuse_ended(self) -> None:
        """End a job that was over before any worker had it."""
        if self.claim.flag is Flag.START:
            return
        if self._delivery.request is not None:
            self._remember(self._delivery.request)
        if self.claim.flag is Flag.CANCELLED:
            raise Cancelled.of(CANCELLED_QUEUED)
        raise Expired.of("nobody took the job within its time in the queue")

    def _remember(self, request: JobRequest) -> None:
        spec = request.spec
        self._facts |= {"batch": request.batch, "labels": spec.labels, "spec_sha256": spec_sha256(spec)}
        self._retry_on = frozenset(spec.retry_on)
        if spec.max_attempts != self.claim.max_attempts:
            # A stock producer's job had no record: whoever may have to take it over must know before it starts.
            self._host.intake.limit_attempts(self.claim, spec.max_attempts)
            self._start.claim = replace(self.claim, max_attempts=spec.max_attempts)
            self._host.intake.held.replace(self.claim)

    def _count_queued(self) -> float:
        """Return the seconds since the job was submitted or, where nobody says when, since this worker has it."""
        submitted = self._delivery.submitted
        return max(0.0, time.time() - (self._taken if submitted is None else submitted))

    def _end(self, code: ErrorCode, message: str) -> Outcome:
        self._note_failed_wait()
        timing, attempts = Timing(queued=self._count_queued()), self.claim.end_attempts(code)
        return Outcome.of(code, self.job.job_id, message, timing=timing, attempts=attempts, **self._facts)

    def _note_failed_wait(self) -> None:
        """Count the try of a job that has waited and failed before its start: it is not tried again without an end."""
        if not self.has_started and not self.job.cancellation.is_set:
            with contextlib.suppress(SandboxError):  # it was cancelled at this moment, or another worker has it
                self._start.note_attempt()


def _log(action: str, job: JobHandle, text: str, *args: object) -> None:
    log.info(f"job %s {text}", job.job_id, *args, extra={"action": f"job_{action}", "job_id": job.job_id})  # noqa: G004
