"""One run of one job: from message to outcome, and the decision whether the job ends with it."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.errors import Cancelled, Expired, ImageNotFound, SandboxError, SpecInvalid
from sandfleet_config.fingerprint import spec_sha256
from sandfleet_config.image_names import pin_image
from sandfleet_config.messages import CANCELLED_QUEUED, EXPIRED
from sandfleet_config.outcome import Outcome, Timing
from sandfleet_config.spec import DEFAULT_QUEUE_TTL_SECONDS
from sandfleet_config.units import format_count

from sandfleet_worker.delivery.claim import Flag
from sandfleet_worker.delivery.host_mark import DRAINED
from sandfleet_worker.delivery.read_message import find_facts, tell_limits
from sandfleet_worker.delivery.settlement import Finish, GiveBack, PutBack, Release, Retry
from sandfleet_worker.job_start import JobStart, long_wait
from sandfleet_worker.job_transfer import JobTransfer
from sandfleet_worker.raised_limits import find_raise
from sandfleet_worker.sandbox.image.allowed import DigestForbidden
from sandfleet_worker.sandbox.image.datasets import DatasetMissing, DatasetsUnsupported
from sandfleet_worker.sandbox.image.finder import PullForbidden
from sandfleet_worker.sandbox.image.registry.failures import NotInRegistry
from sandfleet_worker.sandbox.policy import admit

if TYPE_CHECKING:
    from sandfleet_config.spec import SandboxSpec
    from sandfleet_config.wire import JobRequest

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.read_message import JobMessage
    from sandfleet_worker.delivery.settlement import Settlement
    from sandfleet_worker.host import Host
    from sandfleet_worker.job_handle import JobHandle
    from sandfleet_worker.sandbox.policy import Admitted

log = logging.getLogger(__name__)

FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 30.0


class JobRun:
    """One run of the job of `claim` here: `execute`, then `decide`, in the job's thread."""

    def __init__(self, host: Host, job: JobHandle, job_message: JobMessage, claim: Claim) -> None:
        self._host, self._job, self.message = host, job, job_message
        self._start = JobStart(host.intake, host.slots, claim, job.cancellation, self._note_start)
        self.begun = time.time()
        self._retry_on = frozenset[ErrorCode]()
        self._has_crashed = False
        self._facts: dict[str, Any] = {"host": host.name}
        self._faults: list[dict[str, str]] = []
        self._lacks = self._needed_image = ""
        self._transfer = JobTransfer(host, self._start, job.cancellation)

    @property
    def claim(self) -> Claim:
        """The claim, with the attempts that are known by now."""
        return self._start.claim

    def execute(self) -> Outcome:
        """Admit the job, run it in a sandbox, and return its outcome.

        A refusal and a fault of ours have one, too.
        """
        try:
            self._refuse_ended()
            request = self.message.open()
            self._remember(request)
            limits = self._admit(request.spec).shortened(self._job.soft_seconds, self._job.hard_seconds)
            self._job.cancellation.raise_if_set()
            queued = self._count_queued()
            transfer = self._transfer.source(request.spec)
            ending = self._host.runner.execute(
                limits, cancel=self._job.cancellation, hooks=self._start, transfer=transfer
            )
            self._transfer.note_end(ending)
            self._note_failed_wait()
            attempts = tell_limits(self.message, self.claim.end_attempts(ending.verdict.code))
            self._has_crashed = ending.verdict.is_crash
            return ending.to_outcome(job_id=self._job.job_id, queued=queued, attempts=attempts, **self._facts)
        except SandboxError as error:
            self._faults = error.errors
            self._lacks = self._find_lack(error)
            return self._end(error.code, error.message)
        except Exception:
            extra = {"action": "internal", "job_id": self._job.job_id}
            log.exception("internal error in job %s", self._job.job_id, extra=extra)
            text = f"a fault in sandfleet itself: see the log of worker {self._host.worker}"
            return self._end(ErrorCode.INTERNAL, text)

    def store_files(self, settlement: Settlement) -> Settlement:
        """Upload what a job left that ends now, and say in its outcome where it is; never raise.

        The store keeps the inputs of a dead letter, which a person may queue again.
        """
        if not isinstance(settlement, Finish):
            return settlement
        outcome, request = settlement.outcome, self.message.request
        if not (self._transfer.has_files or settlement.dead_letter_reason):
            return settlement
        try:
            with long_wait(self._host.intake.held_claims.leave_capacity, self.claim):
                if settlement.dead_letter_reason and request is not None:
                    self._host.files.keep_for_dead_letter(request.spec, self._job.cancellation)
                outcome = self._transfer.deliver(outcome)
        except Exception:
            # The job has ended, and its end has to be told: no fault of ours may keep it from that.
            extra = {"action": "delivery_failed", "job_id": self._job.job_id}
            log.exception("cannot deliver the files of job %s", self._job.job_id, extra=extra)
            text = f"a fault in sandfleet itself: see the log of worker {self._host.worker}"
            outcome = outcome.model_copy(update={"artifacts_lost": text} if self._transfer.has_files else {})
        return replace(settlement, outcome=outcome)

    def close(self) -> None:
        """Send the rest of the job's live output, and remove its files from this host's disk."""
        self._transfer.close()

    def decide(self, outcome: Outcome) -> Settlement:
        """Return how the claim ends after `outcome`: with it, or with another attempt anywhere."""
        put_back = self._find_put_back()
        if put_back is not None and self._host.intake.has_other_host(put_back.needs, self.claim):
            self._log("put_back", "is put back for another host: %s", put_back.text)
            return put_back
        if outcome.code is ErrorCode.WORKER_LOST and self._job.is_withdrawn:
            return self._decide_withdrawn(outcome)
        if self._may_try_again(outcome.code):
            delay = min(MAX_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2 ** max(0, self.claim.charged_count - 1))
            self._log("retried", "is tried again in %g s: %s", delay, outcome.to_summary())
            return Retry(outcome.code, delay, self._host.name)
        raised = find_raise(self._host, self.message, self.claim, outcome.code)
        if raised is None:
            return self._finish(outcome)
        if raised.refusal:
            return self._finish(outcome.model_copy(update={"message": f"{outcome.message}; {raised.refusal}"}))
        self._log("raised", "is tried again with %s: %s", raised.text, outcome.to_summary())
        return Retry(outcome.code, needs=raised.needs)

    def _decide_withdrawn(self, outcome: Outcome) -> Settlement:
        """Give back a job that the worker stops, at no cost.

        End it where it has started and may not start again.
        """
        if not self._start.has_started:
            self._log("withdrawn", "goes back to the queue, it had not started: %s", outcome.message)
            return GiveBack()
        why = self._find_why_no_restart()
        if not why:
            self._log("withdrawn", "goes back to the queue: %s", outcome.message)
            return Release()
        cut = tuple(replace(last, charged=False) for last in outcome.attempts[-1:])
        cause = DRAINED if self._job.cancellation.message == DRAINED else "the worker stopped"
        message = f"drained: {cause} and {why}"
        drained = outcome.model_copy(update={"message": message, "attempts": outcome.attempts[:-1] + cut})
        return replace(self._finish(drained), is_drained=True)

    def _finish(self, outcome: Outcome) -> Finish:
        facts = find_facts(self.message)
        return Finish(outcome, self._faults, self._find_dead_letter_reason(outcome), facts=facts)

    def _find_why_no_restart(self) -> str:
        """Say why the job may not start again after a start that is not charged; empty: it may."""
        if self.claim.is_last_start:
            return self.claim.describe_limit()
        return "" if ErrorCode.WORKER_LOST in self._retry_on else "its retry_on does not name WORKER_LOST"

    def _find_put_back(self) -> PutBack | None:
        """Return why another host may run the job where this one cannot; None of any other end."""
        request = self.message.request
        if not self._lacks or request is None:
            return None
        return PutBack.of(request, self._lacks, self._host.name, self._needed_image)

    def _find_lack(self, error: SandboxError) -> str:
        """Say what this host lacks for the job, where another host may have it.

        Note the image that the job needs.
        """
        request = self.message.request
        match error:
            case NotInRegistry():  # no host can pull it, but one may have kept it
                self._needed_image = self._start.pinned or (request.spec.image.partition("@")[2] if request else "")
                is_elsewhere = bool(self._needed_image)
            case ImageNotFound() | PullForbidden():
                if request and self._start.pinned:
                    self._needed_image = pin_image(request.spec.image, self._start.pinned)
                is_elsewhere = True
            case DigestForbidden():
                return f"names a digest that {self._host.name} does not allow"
            case DatasetMissing():
                return f"needs a dataset that {self._host.name} does not have"
            case DatasetsUnsupported():
                return f"needs datasets, which the runsc of {self._host.name} cannot mount"
            case _:
                return self._lacks
        return f"needs an image that {self._host.name} does not have" if is_elsewhere else ""

    def _may_try_again(self, code: ErrorCode) -> bool:
        """Whether the spec's `retry_on` names `code`, and an attempt is left.

        By default it names each trouble of ours.
        """
        claim = self.claim
        if claim.flag is not Flag.START or claim.is_last_attempt:
            return False
        if self._has_crashed and any(attempt.code is code for attempt in claim.attempts[:-1]):
            return False  # it crashes every sandbox that it gets: a fault of gVisor's that the job meets
        return code in self._retry_on

    def _find_dead_letter_reason(self, outcome: Outcome) -> str:
        """Return why the job, which ends now, becomes a dead letter; empty if it does not.

        It becomes one if its code is of the category ``host``, or if its `retry_on` names the code.
        """
        code, claim = outcome.code, self.claim
        if code.category is not Category.HOST and code not in self._retry_on:
            return ""
        if outcome.attempts and not outcome.attempts[-1].charged:
            return f"{code.value}: {outcome.message}"
        return f"{code.value} after {claim.charged_count} of {format_count(claim.max_attempts, 'attempt')}: {outcome.message}"

    def _refuse_ended(self) -> None:
        """End a job that was cancelled or had expired before any worker had it."""
        if self.claim.flag is Flag.START:
            return
        if self.message.request is not None:
            self._remember(self.message.request)
        if self.claim.flag is Flag.CANCELLED:
            raise Cancelled.of(CANCELLED_QUEUED)
        raise Expired.of(EXPIRED)

    def _remember(self, request: JobRequest) -> None:
        """Keep the facts of the request for the outcome, and those that decide a next attempt."""
        spec = request.spec
        self._start.batch = request.batch or ""
        self._facts |= {"batch": request.batch, "labels": spec.labels, "spec_sha256": spec_sha256(spec)}
        self._retry_on = frozenset(spec.retry_on)
        is_stock = self.message.submitted is None
        if spec.max_attempts != self.claim.max_attempts or (is_stock and spec.queue_ttl != DEFAULT_QUEUE_TTL_SECONDS):
            # A stock producer's job had no record: a worker that takes it over must know these.
            self._start.claim = self._host.intake.limit_attempts(self.claim, spec.max_attempts, spec.queue_ttl)

    def _admit(self, spec: SandboxSpec) -> Admitted:
        """Return the limits that the job gets here.

        A wish above this host's ceilings may be granted by another host.
        """
        try:
            return admit(spec, self._host.abilities.find_settings())
        except SpecInvalid:
            self._lacks = f"needs more than {self._host.name} lets a job have"
            raise

    def _count_queued(self) -> float:
        """Return the seconds since the submit or, if unknown, since this worker has the job."""
        submitted = self.message.submitted
        return max(0.0, time.time() - (self.begun if submitted is None else submitted))

    def _end(self, code: ErrorCode, message: str) -> Outcome:
        """Return the outcome of a job that did not run to a verdict."""
        self._note_failed_wait()
        timing, attempts = (
            Timing.of(queued=self._count_queued(), image=self._transfer.count_image_seconds()),
            tell_limits(self.message, self.claim.end_attempts(code)),
        )
        return Outcome.of(code, self._job.job_id, message, timing=timing, attempts=attempts, **self._facts)

    def _note_failed_wait(self) -> None:
        """Count the try of a job that waited and failed before its start, to bound its tries."""
        if not self._start.has_started and not self._job.cancellation.is_set:
            with contextlib.suppress(SandboxError):  # it was cancelled at this moment, or another worker has it
                self._start.note_attempt()

    def _note_start(self) -> None:
        if self._host.counts:
            self._host.counts.note_start(self.claim.queue)
        run = f" (run {self.claim.run})" if self.claim.run > 1 else ""
        self._log("started", "starts%s: %s", run, self.message.log_line)

    def log_end(self, outcome: Outcome) -> None:
        """Log that the job has ended, and how; called when that is recorded."""
        self._log("ended", "ended: %s", outcome.to_summary(), outcome=outcome)

    def _log(self, action: str, text: str, *args: object, outcome: Outcome | None = None) -> None:
        claim, job_id = self.claim, self._job.job_id
        known = {"queue": claim.queue, "batch": self._facts.get("batch"), "attempt": len(claim.attempts)}
        extra = {"action": f"job_{action}", "job_id": job_id, "claim": claim.claim_id, "outcome": outcome, **known}
        log.info(f"job %s {text}", job_id, *args, extra=extra)  # noqa: G004
