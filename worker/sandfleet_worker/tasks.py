"""The one task: a job's way from its message to its outcome, and what it returns to Celery.

A job walks one way: execute (`JobRun.execute` takes a sandbox and runs the program to its verdict),
decide what becomes of it, settle its claim in Redis, and return its end to Celery.
"""

from __future__ import annotations

import logging
import time
from contextlib import closing
from typing import TYPE_CHECKING

from celery import Task
from celery.exceptions import Reject
from sandfleet_config.errors import ERROR_CLASSES, SandboxError
from sandfleet_config.queues import TASK_NAME

from sandfleet_worker.delivery.settlement import Finish
from sandfleet_worker.job_handle import current_job
from sandfleet_worker.job_run import JobRun
from sandfleet_worker.traces import TracedTry

if TYPE_CHECKING:
    from celery import Celery
    from sandfleet_config.outcome import Outcome

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.read_message import JobMessage
    from sandfleet_worker.host import Host
    from sandfleet_worker.traces import JobTraces

log = logging.getLogger(__name__)


class Requeued(Reject):
    """This run has no outcome: the job is back in its queue."""


class Fenced(Reject):
    """Another worker has taken the job over: this run leaves neither a result nor a final event."""


class OwnEnd:
    """The task's return value for a program that ran to its own end.

    Logs, events and Flower show its `repr`. Celery's ``saferepr`` prints dicts and strings whatever
    their class says, so this is neither.
    """

    __slots__ = ("_text",)

    def __init__(self, outcome: Outcome) -> None:
        code, text = outcome.code.value, outcome.to_summary()
        self._text = text if text.startswith(code) else f"{code} {text}"

    def __repr__(self) -> str:
        """Say ``OK`` or ``EXIT_NONZERO exit 3``, never the program's output."""
        return self._text


class RunTask(Task):  # type: ignore[type-arg]  # generic in the stubs only
    """``sandfleet.run``.

    A program that ran to its own end is Celery's SUCCESS, every other code raises its exception.
    """

    name = TASK_NAME
    Strategy = "sandfleet_worker.celery_worker.requests:strategy"
    acks_late = True
    ignore_result = False
    max_retries = 0
    throws = (SandboxError,)
    host: Host | None = None

    def run(self, job_message: JobMessage) -> OwnEnd:
        """Run the job of `job_message` and settle its claim.

        Raises:
            SandboxError: the class of the outcome's code, with its message and without its output.
            Requeued: another attempt follows, or the worker stops.
            Fenced: another worker has taken over.
        """
        assert self.host is not None  # the consumer does not start without
        job, intake = current_job(), self.host.intake
        claim = intake.held_claims.find(job.claim_id)
        if claim is None:
            raise Fenced(f"job {job.job_id} is not held here")
        with closing(JobRun(self.host, job, job_message, claim)) as run:
            outcome = run.execute()
            intake.held_claims.free_slot(run.claim)  # the sandbox is gone, and Redis may let the end wait
            settlement = run.store_files(run.decide(outcome))
        if not intake.settle(run.claim, settlement):
            raise Fenced(f"job {job.job_id} was taken over")
        ended = settlement.outcome if isinstance(settlement, Finish) else None
        if self.host.traces:
            _trace(self.host.traces, run, claim, ended or outcome, is_final=ended is not None)
        if ended is None:
            raise Requeued(outcome.to_summary(), requeue=True)
        run.log_end(ended)
        if ended.code.is_own_end:
            return OwnEnd(ended)
        raise ERROR_CLASSES[ended.code].of(ended.message)


def _trace(traces: JobTraces, run: JobRun, claim: Claim, outcome: Outcome, *, is_final: bool) -> None:
    """Make the spans of a try; `claim` is as it was when the job came."""
    try:
        claimed = min(run.begun, time.time() - (time.monotonic() - claim.started_monotonic))
        earlier = [attempt.ended.timestamp() for attempt in claim.attempts if attempt.ended]
        told = TracedTry(
            parent=run.message.trace,
            queue=claim.queue,
            attempt=max(1, len(run.claim.attempts)),
            queued=earlier[-1] if earlier else claimed if run.message.submitted is None else run.message.submitted,
            claimed=claimed,
            begun=run.begun,
            is_final=is_final,
        )
        traces.note(told, outcome)
    except Exception:
        # The try is settled; no fault of a trace may change that.
        extra = {"action": "trace_failed", "job_id": claim.job_id}
        log.exception("cannot trace job %s", claim.job_id, extra=extra)


def run_task(app: Celery) -> RunTask:
    """Return the app's one task.

    Raises:
        TypeError: a task of another class has its name.
    """
    task = app.tasks[TASK_NAME]
    if not isinstance(task, RunTask):
        msg = f"{TASK_NAME} of this app is not ours"
        raise TypeError(msg)
    return task
