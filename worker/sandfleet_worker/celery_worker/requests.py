"""Celery's request of a job, and the receiver that builds it from a message."""

# ruff: noqa: ARG001, ARG002  Celery calls these, with arguments of its own choice
from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from celery.worker import state
from celery.worker.request import Request
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SandboxError

from sandfleet_worker.celery_worker.events import describe_end, describe_received
from sandfleet_worker.tasks import Fenced, Requeued

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.celery_worker.consumer import SandboxConsumer

log = logging.getLogger(__name__)


def strategy(task: Any, app: Any, consumer: SandboxConsumer) -> Callable[..., None]:
    """Return the receiver of messages for `task`.

    It is Celery's own without what would log, revoke, expire or delay.
    """
    events = consumer.event_dispatcher

    def receive(message: Any, payload: object, ack: Any, reject: Any, callbacks: Any) -> None:
        job_message = message.job_message
        request = SandboxRequest(
            message,
            on_ack=ack,
            on_reject=reject,
            app=app,
            hostname=consumer.hostname,
            eventer=events,
            task=task,
            connection_errors=consumer.connection_errors,
            headers=message.headers,
            body=((job_message,), {}, {}),
            decoded=True,
        )
        request.send_event("task-received", name=task.name, **describe_received(job_message, message.claim))
        state.task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        consumer.on_task_request(request)

    return receive


class SandboxRequest(Request):
    """A job on this worker.

    Ending it means killing its sandbox; the task then records the outcome, and nothing before it.
    """

    def revoked(self) -> bool:
        """Say no: a revoked job starts, finds itself cancelled and ends with an outcome."""
        return False

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  Celery's
        """Send an event, or buffer it in an outage, which must not affect the job.

        Flower shows ``exit 2`` as a failure. The stored result stays Celery's SUCCESS, as the
        contract says.
        """
        if type == "task-succeeded" and fields["result"] != ErrorCode.OK.value:
            type, fields = "task-failed", describe_end(fields["result"], fields["runtime"])  # noqa: A001  Celery's
        if fields.get("runtime") is not None:
            fields["runtime"] = round(fields["runtime"], 6)
        try:
            super().send_event(type, **fields)
        except Exception as error:  # noqa: BLE001  any kind of a broken connection
            log.debug("cannot send an event: %s", error)

    def terminate(self, pool: Any, signal: object = None) -> None:
        """Cancel the job."""
        pool.cancel(self.id)

    def cancel(self, pool: Any, signal: object = None, emit_retry: bool = True) -> None:  # noqa: FBT001, FBT002  Celery's
        """Take the job back for another worker (cold shutdown)."""
        pool.withdraw(self.id)

    def info(self, safe: bool = False) -> Any:  # noqa: FBT001, FBT002  Celery's
        """Describe the job for ``inspect``, never with its spec."""
        return {**super().info(safe=True), "args": self.argsrepr, "kwargs": ""}

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        """Send the event of a job that the task has settled, with code and message only."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard may have wrapped it
        if isinstance(error, Fenced):
            state.task_ready(self)
            return
        if isinstance(error, Requeued):
            state.task_ready(self)
            self.send_event("task-retried", **describe_end(str(error.args[0])))
            return
        if not isinstance(error, SandboxError):
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
            return
        state.task_ready(self)
        self.acknowledge()
        seconds = None if self.time_start is None else time.time() - self.time_start
        self.send_event("task-failed", **describe_end(str(error), seconds))
