"""How messages enter the worker: every one becomes a request of our one task, its refusal included.

So a forged message takes the same way as a job and ends with an outcome that says why; Celery's own tasks
(``celery.chord_unlock``, ...) are never reached. What stock Celery would log of a message, its body, is never logged.
"""

# ruff: noqa: ARG001, ARG002  Celery calls these methods, with arguments of its own choice
from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.exceptions import ImproperlyConfigured
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.request import Request
from sandfleet_config.errors import SandboxError

from sandfleet_worker.messages import read_delivery
from sandfleet_worker.tasks import run_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from kombu.message import Message

log = logging.getLogger(__name__)


class SandboxConsumer(Consumer):
    """Reads each message before Celery does."""

    app: Any
    connection_errors: Any
    event_dispatcher: Any
    on_task_request: Callable[[Request], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        host = run_task(self.app).host
        if host is None:
            msg = "start it with: sandfleet-worker start (plain `celery worker` has no sandboxes)"
            raise ImproperlyConfigured(msg)
        self._max_spec_bytes = host.settings.max_spec_bytes

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Message], None]:
        """Return the callback for each message."""
        receive = super().create_task_handler(*args, **kwargs)

        def on_message(message: Any) -> None:
            delivery = read_delivery(message, self._max_spec_bytes)
            if delivery is None:
                self._drop(message, "it has no usable id")
                return
            message.headers, message.delivery = delivery.to_headers(), delivery
            receive(message)

        self._on_message = on_message
        return on_message

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Refuse what kombu cannot unpack (compression) like any other; a broken control message has no id and is dropped."""
        self._on_message(message)

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Drop it without a look at the body; never reached by what `create_task_handler` lets through."""
        self._drop(message, type(exc).__name__)

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Likewise."""
        self._drop(message, type(exc).__name__)

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Likewise."""
        self._drop(message, "it is no task")

    def _drop(self, message: Message, reason: str) -> None:
        log.warning("dropped a message that can have no outcome: %s", reason, extra={"action": "message_dropped"})
        message.ack_log_error(log, self.connection_errors)


def strategy(task: Any, app: Any, consumer: SandboxConsumer) -> Callable[..., None]:
    """Return the receiver of messages for `task`: Celery's own without what would log, revoke, expire or delay."""
    events = consumer.event_dispatcher

    def receive(message: Any, payload: object, ack: Any, reject: Any, callbacks: Any) -> None:
        delivery = message.delivery
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
            body=((delivery,), {}, {}),
            decoded=True,
        )
        log.info(
            "job %s received: %s",
            delivery.job_id,
            delivery.line,
            extra={"action": "job_received", "job_id": delivery.job_id},
        )
        request.send_event(
            "task-received", name=task.name, args=delivery.line, kwargs="", retries=0, root_id=delivery.job_id
        )
        state.task_reserved(request)
        for callback in callbacks or ():
            callback(request)
        consumer.on_task_request(request)

    return receive


class SandboxRequest(Request):
    """A job on this worker. Ending it means killing its sandbox; the task then records the outcome, and nothing before it."""

    def revoked(self) -> bool:
        """Say no: a revoked job starts, finds itself cancelled and ends with an outcome."""
        return False

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
        """Finish a job whose outcome is stored: ack it and tell the event's readers code and message only."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard may have wrapped it
        if not isinstance(error, SandboxError):
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
            return
        state.task_ready(self)
        self.acknowledge()
        self.send_event("task-failed", exception=str(error), traceback="")
