"""How claimed messages enter Celery: every one becomes a request of our one task, its refusal included.

They come from the claimer's thread and not through kombu's channel, so what runs does not depend on Celery's connection; that
one serves events and control commands. A forged message takes the same way as a job and ends with an outcome that says why;
Celery's own tasks (``celery.chord_unlock``, ...) are never reached. What stock Celery would log of a message, its body, is
never logged.
"""

# ruff: noqa: ARG001, ARG002  Celery calls these methods, with arguments of its own choice
from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.exceptions import ImproperlyConfigured
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.consumer.consumer import CLOSE, TERMINATE  # type: ignore[attr-defined]
from celery.worker.consumer.control import Control
from celery.worker.consumer.mingle import Mingle
from celery.worker.request import Request
from sandfleet_config.errors import SandboxError
from sandfleet_config.queues import TASK_NAME

from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.intake import EXIT_LOST
from sandfleet_worker.messages import read_delivery
from sandfleet_worker.tasks import Fenced, Requeued, run_task

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from kombu.message import Message

    from sandfleet_worker.delivery.ledger import Claim

log = logging.getLogger(__name__)

STOPPING = {CLOSE, TERMINATE}
TICK_SECONDS = 1.0
RELEASE_SECONDS = 15.0
"""How long sandboxes may take to die, and Redis to hear of it, when the worker stops."""


class NoConsumer:
    """Stands where Celery keeps kombu's consumer of the queues: there is nothing to consume on a channel."""

    on_message: Any = None
    channel = None

    def __init__(self, queues: list[Any]) -> None:
        self.queues = queues

    def consume(self) -> None:
        """Do nothing."""

    def cancel(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class NoQoS:
    """Stands where Celery counts prefetched messages: there are none."""

    value = prev = 0
    _mutex: Any = None

    def update(self) -> None:
        """Do nothing."""

    def set(self, value: int) -> None:
        """Do nothing."""

    def increment_eventually(self, count: int = 1) -> None:
        """Do nothing."""

    def decrement_eventually(self, count: int = 1) -> None:
        """Do nothing."""


class ClaimedTasks(bootsteps.StartStopStep):
    """Celery's ``Tasks`` step, without a channel: starts the claims and, when the worker stops, drains."""

    requires = (Mingle,)

    def start(self, c: SandboxConsumer) -> None:
        """Begin to claim; after a lost connection only the receiver of events is new."""
        c.update_strategies()
        c.task_consumer = NoConsumer(list(c.app.amqp.queues.consume_from.values()))
        c.qos = NoQoS()
        c.begin_claims()

    def stop(self, c: SandboxConsumer) -> None:
        """Drain if the worker stops; a lost connection comes through here too, and changes nothing."""
        if c.controller.blueprint.state in STOPPING:
            c.drain()

    def shutdown(self, c: SandboxConsumer) -> None:
        """Drain, if nothing did."""
        c.drain()

    def register_with_event_loop(self, c: SandboxConsumer, hub: Any) -> None:
        """Let the watchdog see the loop go round."""
        hub.call_repeatedly(TICK_SECONDS, c.intake.watchdog.tick)

    def info(self, c: SandboxConsumer) -> Any:
        """Say how many jobs are held."""
        return {"prefetch_count": 0, "claims": len(c.intake.held.job_ids())}


class ClaimedControl(Control):
    """Celery's ``Control`` step, after ours instead of after ``Tasks``."""

    requires = (ClaimedTasks,)


class SandboxConsumer(Consumer):
    """Takes each job from the claimer, reads it before Celery does, and hands it to the pool."""

    app: Any
    pool: Any
    controller: Any
    event_dispatcher: Any
    on_task_request: Callable[[Request], None]
    on_task_message: Any
    strategies: Any
    connection_errors: Any
    task_consumer: Any
    qos: Any

    class Blueprint(bootsteps.Blueprint):
        """Celery's steps for Redis, with ours for its two."""

        name = "Consumer"
        default_steps = [  # type: ignore[assignment]  # noqa: RUF012  Celery reads it, nobody changes it
            "celery.worker.consumer.connection:Connection",
            "celery.worker.consumer.mingle:Mingle",
            "celery.worker.consumer.events:Events",
            "celery.worker.consumer.gossip:Gossip",
            "celery.worker.consumer.heart:Heart",
            ClaimedTasks,
            ClaimedControl,
            "celery.worker.consumer.consumer:Evloop",
        ]

        def shutdown(self, parent: Any) -> None:
            """As Celery's."""
            self.send_all(parent, "shutdown")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        host = run_task(kwargs["app"]).host
        if host is None:
            msg = "start it with: sandfleet-worker start (plain `celery worker` has no sandboxes)"
            raise ImproperlyConfigured(msg)
        super().__init__(*args, **kwargs)
        self.intake, self._settings = host.intake, host.settings
        self._is_drained = False

    def begin_claims(self) -> None:
        """Let the claimer work from now on."""
        self.intake.start(
            self.receive, is_stopping=is_stopping, end_job=self._cancel_jobs, end_all=self._end_after_lost_lease
        )

    def receive(self, claim: Claim) -> None:
        """Hand a claimed job to the pool; called in the claimer's thread."""
        message: Any = open_message(claim)
        delivery = read_delivery(message, self._settings.max_spec_bytes)
        if delivery is None:
            msg = "the claim's script let a message without a usable id through"
            raise RuntimeError(msg)
        message.headers, message.delivery = delivery.to_headers(), delivery
        self.strategies[TASK_NAME](message, None, _nothing, _nothing, self.on_task_message)

    def drain(self) -> None:
        """Claim no more, let what runs end within ``drain_seconds``, and give the rest back; once."""
        if self._is_drained:
            return
        self._is_drained = True
        self.intake.stop()
        is_cold = self.controller.blueprint.state == TERMINATE
        seconds = 0.0 if is_cold or self.intake.lease.is_lost else self._settings.drain_seconds
        if self.intake.wait_until_idle(seconds, _is_terminating):
            return
        self.pool.withdraw_all("the worker stops")
        self.intake.wait_until_idle(RELEASE_SECONDS, lambda: False)
        self.intake.give_up()

    def _cancel_jobs(self, job_ids: Sequence[str]) -> None:
        for job_id in job_ids:
            self.pool.cancel(job_id, "the job was cancelled")

    def _end_after_lost_lease(self) -> None:
        self.pool.withdraw_all("the worker has lost its lease")
        flags: Any = state
        flags.should_terminate = EXIT_LOST

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Drop a broken control message."""
        self._drop(message, type(exc).__name__)

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Drop it without a look at the body."""
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


def is_stopping() -> bool:
    """Whether a signal told this process to stop, even if Celery's loop has not seen it yet."""
    flags: Any = state
    return flags.should_stop not in {None, False} or _is_terminating()


def _is_terminating() -> bool:
    flags: Any = state
    return flags.should_terminate not in {None, False}


def _nothing(*_: object) -> None:
    """Stand for an ack or a reject: `finish` and `requeue` have settled the claim before."""


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

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002  Celery's
        """Tell who watches; an outage must not reach the job, and what is not told now is told after it."""
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
        """Finish a job whose outcome is stored: ack it and tell the event's readers code and message only."""
        error = getattr(exc_info.exception, "exc", exc_info.exception)  # billiard may have wrapped it
        if isinstance(error, Fenced):
            state.task_ready(self)
            return
        if isinstance(error, Requeued):
            state.task_ready(self)
            self.send_event("task-retried", exception=str(error.args[0]), traceback="")
            return
        if not isinstance(error, SandboxError):
            super().on_failure(exc_info, send_failed_event=send_failed_event, return_ok=return_ok)
            return
        state.task_ready(self)
        self.acknowledge()
        self.send_event("task-failed", exception=str(error), traceback="")
