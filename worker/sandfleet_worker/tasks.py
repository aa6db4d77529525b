"""The one task: a job's whole life, from its message to its outcome."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from celery import Task
from celery.exceptions import Reject
from sandfleet_config.errors import ERROR_CLASSES, Cancelled, ErrorCode, SandboxError
from sandfleet_config.outcome import Attempt, Outcome, Timing
from sandfleet_config.queues import TASK_NAME
from sandfleet_config.wire import spec_sha256

from sandfleet_worker.policy import admit
from sandfleet_worker.pool import current_job

if TYPE_CHECKING:
    from celery import Celery
    from sandfleet_config.wire import JobRequest

    from sandfleet_worker.host import Host
    from sandfleet_worker.messages import Delivery
    from sandfleet_worker.pool import JobHandle

log = logging.getLogger(__name__)


class JobEnd:
    """What a job that ran to its own end returns to Celery: the outcome for the result store, two words for people.

    Celery's ``saferepr`` prints dicts and strings whatever their class says, so this is neither; kombu's encoder asks `__json__`.
    """

    __slots__ = ("_outcome",)

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def __repr__(self) -> str:
        """Say ``OK`` or ``exit 3``: this reaches logs, events and Flower, the program's output must not."""
        return self._outcome.to_summary()

    def __json__(self) -> dict[str, Any]:
        """Return what is stored."""
        return self._outcome.to_json()


class RunTask(Task):  # type: ignore[type-arg]  # generic in the stubs only
    """``sandfleet.run``. A program that ran to its own end is Celery's SUCCESS, everything else raises its code's exception."""

    name = TASK_NAME
    Strategy = "sandfleet_worker.consumer:strategy"
    acks_late = True
    ignore_result = False
    max_retries = 0
    throws = (SandboxError,)
    host: Host | None = None

    def run(self, delivery: Delivery) -> JobEnd:
        """Run the job of `delivery`.

        Raises:
            SandboxError: the class of the outcome's code, with the outcome.
            Reject: the worker is told to stop at once; the message goes back to the queue unrecorded.
        """
        assert self.host is not None  # the consumer does not start without
        job = current_job()
        life = Life(self.host, job, delivery)
        outcome = life.run()
        if outcome.code is ErrorCode.WORKER_LOST and job.is_withdrawn:
            _log("withdrawn", job, "goes back to the queue: %s", outcome.message)
            raise Reject(outcome.message, requeue=True)
        _log("ended", job, "ended: %s", outcome.to_summary())
        if outcome.code.is_own_end:
            return JobEnd(outcome)
        raise ERROR_CLASSES[outcome.code].of(outcome.message, outcome.to_json(), life.faults)


def run_task(app: Celery) -> RunTask:
    """Return the app's one task."""
    task = app.tasks[TASK_NAME]
    if not isinstance(task, RunTask):
        msg = f"{TASK_NAME} of this app is not ours"
        raise TypeError(msg)
    return task


class Life:
    """One run of one job on this host."""

    def __init__(self, host: Host, job: JobHandle, delivery: Delivery) -> None:
        self._host, self._job, self._delivery = host, job, delivery
        self._taken = datetime.now(UTC)
        self._facts: dict[str, Any] = {"host": host.name}
        self.faults: list[dict[str, str]] = []

    def run(self) -> Outcome:
        """Walk the job's whole way; every way out is an outcome."""
        host, job = self._host, self._job
        try:
            request = self._delivery.open()
            self._remember(request)
            limits = admit(request.spec, host.settings).shortened(job.soft_seconds, job.hard_seconds)
            with host.slot(job.cancellation):
                if host.is_cancelled(job.job_id):
                    raise Cancelled.of("the job was cancelled before its start")  # noqa: TRY301  one way out for all
                queued = self._count_queued()
                _log("started", job, "starts: %s", self._delivery.line)
                ending = host.runner.execute(limits, cancel=job.cancellation)
            attempts = self._attempts(ending.verdict.code)
            return ending.to_outcome(job_id=job.job_id, queued=queued, attempts=attempts, **self._facts)
        except SandboxError as error:
            self.faults = error.errors
            return self._end(error.code, error.message)
        except Exception:
            log.exception("job %s met a fault of ours", job.job_id, extra={"action": "internal", "job_id": job.job_id})
            return self._end(ErrorCode.INTERNAL, f"a fault in sandfleet itself: see the log of worker {host.worker}")

    def _remember(self, request: JobRequest) -> None:
        spec = request.spec
        self._facts |= {"batch": request.batch, "labels": spec.labels, "spec_sha256": spec_sha256(spec)}

    def _count_queued(self) -> float:
        """Return the seconds since the job was submitted or, where nobody says when, since this worker has it."""
        submitted = self._delivery.submitted
        return max(0.0, time.time() - (self._taken.timestamp() if submitted is None else submitted))

    def _end(self, code: ErrorCode, message: str) -> Outcome:
        timing, attempts = Timing(queued=self._count_queued()), self._attempts(code)
        return Outcome.of(code, self._job.job_id, message, timing=timing, attempts=attempts, **self._facts)

    def _attempts(self, code: ErrorCode) -> tuple[Attempt, ...]:
        host, ended = self._host, datetime.now(UTC)
        return (Attempt(host=host.name, worker=host.worker, code=code, started=self._taken, ended=ended),)


def _log(action: str, job: JobHandle, text: str, *args: object) -> None:
    log.info(f"job %s {text}", job.job_id, *args, extra={"action": f"job_{action}", "job_id": job.job_id})  # noqa: G004
