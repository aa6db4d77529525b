"""Hands claimed messages to Celery: each becomes a request of our one task, or is refused at once.

They come from the claimer's thread and not through kombu's channel, so what runs does not depend on
Celery's connection; that one serves events and control commands. A forged message takes the same
way as a job and ends with an outcome that says why; Celery's own tasks (``celery.chord_unlock``,
...) are never reached. What stock Celery would log of a message, its body, is never logged.
"""

# ruff: noqa: ARG002  Celery calls these methods, with arguments of its own choice
from __future__ import annotations

import errno
import logging
import time
from typing import TYPE_CHECKING, Any

from celery import bootsteps
from celery.exceptions import ImproperlyConfigured
from celery.worker import state
from celery.worker.consumer import Consumer
from celery.worker.consumer.consumer import TERMINATE  # type: ignore[attr-defined]
from kombu.exceptions import OperationalError
from sandfleet_config.queues import TASK_NAME
from sandfleet_config.units import format_bytes, format_count
from sandfleet_config.wire import join_needs

from sandfleet_worker.celery_worker.refusal import refuse
from sandfleet_worker.celery_worker.steps import ClaimedControl, ClaimedTasks
from sandfleet_worker.delivery.claim import Flag
from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.read_message import read_message
from sandfleet_worker.delivery.settlement import FailedAttempt, PutBack
from sandfleet_worker.delivery.worker_exit import RELEASE_SECONDS
from sandfleet_worker.sandbox.process.artifacts import COLLECT_SECONDS
from sandfleet_worker.sandbox.process.deadlines import FILES_SECONDS
from sandfleet_worker.system.supervised_thread import Backoff
from sandfleet_worker.tasks import run_task

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from celery.worker.request import Request
    from kombu.message import Message

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.read_message import JobMessage

log = logging.getLogger(__name__)

OVERDUE_SECONDS = 600.0
"""A job that is so far past all its limits hangs. A full disk or a swapping host takes its time."""


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

        def start(self, parent: Any) -> None:
            """Turn a lack of descriptors into a lost connection; Celery would end the worker.

            A lost connection is opened again.
            """
            try:
                super().start(parent)
            except OSError as error:
                if error.errno not in {errno.EMFILE, errno.ENFILE}:
                    raise
                raise ConnectionAbortedError(str(error)) from error

        def shutdown(self, parent: Any) -> None:
            """Shut the steps down, as Celery does."""
            self.send_all(parent, "shutdown")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        host = run_task(kwargs["app"]).host
        if host is None:
            msg = "start it with: sandfleet-worker start (plain `celery worker` has no sandboxes)"
            raise ImproperlyConfigured(msg)
        super().__init__(*args, **kwargs)
        self._host = host
        self.intake, self._runner, self._settings = host.intake, host.runner, host.settings
        self.queue_patterns = [host.settings.queue, *host.settings.queues]
        self._is_drained = False

    def on_send_event_buffered(self) -> Any:
        """Leave it to the timer (`steps.EVENTS_SECONDS`).

        Celery sends at once, from its loop; one send costs 1 ms, since kombu makes a client for
        each, and a job has three events.
        """

    def flush_events(self) -> None:
        """Send the events since the last time, all in one message."""
        self._flush_events()  # type: ignore[attr-defined]  # Celery's

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, however long that takes.

        Celery's own tries end where one of them raises in the handler that logs it, as all do while
        no descriptor is left.
        """
        backoff = Backoff("connection", subject="the connection for events and commands")
        while True:
            try:
                connected = super().ensure_connected(conn)
            except (OperationalError, OSError) as error:
                state.maybe_shutdown()
                time.sleep(backoff.note_failure(error))
            else:
                backoff.note_success()
                return connected

    def begin_claims(self) -> None:
        """Start the claims."""
        self.pool.on_done = self._settle_if_held
        self.intake.comparison.withdraw = self.pool.withdraw_claim
        self.intake.start(
            self.receive,
            is_stopping=is_stopping,
            end_job=self._cancel_jobs,
            end_all=self._end_after_lost_lease,
            withdraw=self._give_back,
        )

    def receive(self, claim: Claim) -> None:
        """Hand a claimed job to the pool, or end it if it is none.

        The claimer's thread calls it.
        """
        message: Any = open_message(claim)
        settings = self._settings
        job_message = read_message(message, settings.max_spec_bytes, shows_whole=settings.shows_whole_commands)
        if job_message is None:
            msg = "the claim's script let a message without a usable id through"
            raise RuntimeError(msg)
        job_message = job_message.raised(claim.attempts)
        if claim.flag is Flag.START and self._put_back(claim, job_message):
            return
        if job_message.refusal is not None and claim.flag is Flag.START:
            refuse(self.intake, claim, job_message, job_message.refusal, self.event_dispatcher)
            return
        message.headers, message.job_message, message.claim = job_message.to_headers(), job_message, claim
        self.intake.held_claims.expect_end(claim, self._find_longest(job_message))
        self.strategies[TASK_NAME](message, None, _nothing, _nothing, self.on_task_message)

    def _put_back(self, claim: Claim, job_message: JobMessage) -> bool:
        """Give a job back that another host must take, or this one later; return whether it was.

        claim.lua has decided about jobs whose record has their needs. This decides about the
        others, and about memory that another worker of the host has reserved since.
        """
        request = job_message.request
        if request is None:
            needs = join_needs(job_message.newer_contract) if job_message.newer_contract else ""
            if not needs or not self.intake.has_other_host(needs, claim):
                return False
            self.intake.put_back(claim, PutBack(f"needs contract version {job_message.newer_contract}", needs))
            return True
        spec, abilities = request.spec, self._host.abilities
        if label := abilities.find_missing_label(spec):
            why = f"needs {label}, which {self._host.name} does not have"
            self.intake.put_back(claim, PutBack.of(request, why))
            return True
        ceiling = abilities.find_settings().policy.memory_bytes
        memory_bytes = spec.resources.memory_bytes or ceiling
        if memory_bytes > ceiling or self.intake.held_claims.reserve(claim, memory_bytes):
            return False  # more than the ceiling is refused before it starts
        memory = self._host.slots.read_memory()
        free = format_bytes(memory.free_for_new if memory else 0)
        why = f"needs {format_bytes(memory_bytes)} of memory, {self._host.name} has {free} free"
        self.intake.put_back(claim, PutBack.of(request, why), lacks_memory=True)
        return True

    def _find_longest(self, job_message: JobMessage) -> float:
        """Return the seconds within which the job's sandbox must be gone.

        They are its limits, its wait to boot, and a wide margin.
        """
        settings, seconds = self._settings, OVERDUE_SECONDS
        if job_message.request is not None:
            spec = job_message.request.spec
            seconds += spec.timeout_seconds + spec.grace
            seconds += (FILES_SECONDS if spec.files else 0) + (COLLECT_SECONDS if spec.artifacts else 0)
        # Those that boot before it may each use up a boot deadline; then come its own two, of the
        # sandbox and of the program.
        return seconds + (settings.concurrency + 2) * settings.runsc.boot_deadline_seconds

    def drain(self) -> None:
        """Claim no more, let running jobs end within ``drain_seconds``, and give the rest back.

        It does so once.
        """
        if self._is_drained:
            return
        self._is_drained = True
        self.intake.stop()
        self._runner.drain()
        for job_id in self.intake.held_claims.waiting_job_ids():
            self.pool.withdraw(job_id, "the worker stops")
        is_cold = self.controller.blueprint.state == TERMINATE
        seconds = 0.0 if is_cold or self.intake.lease.is_lost else self._settings.drain_seconds
        if not self.intake.held_claims.wait_until_idle(seconds, _is_terminating):
            self._withdraw_jobs()
        self.flush_events()

    def _withdraw_jobs(self) -> None:
        """Give back what still runs, and leave without what does not end."""
        self.pool.withdraw_all("the worker stops")
        self.intake.held_claims.wait_until_idle(RELEASE_SECONDS, lambda: False)
        self.intake.give_up()
        if hung := self.intake.held_claims.running_job_ids():
            # Celery would wait for their threads for ever, with the lease held.
            self.intake.exit.abandon(f"{format_count(len(hung), 'sandbox does', 'sandboxes do')} not end")

    def _settle_if_held(self, claim_id: str, failure: Exception | None) -> None:
        """Settle a job whose thread has left it without an end.

        Celery's own code has failed around it.
        """
        if claim := self.intake.held_claims.find(claim_id):
            self.intake.settle(claim, FailedAttempt.of(failure))

    def _cancel_jobs(self, reasons: Mapping[str, str]) -> None:
        for job_id, why in reasons.items():
            self.pool.cancel(job_id, why)

    def _give_back(self, job_ids: Sequence[str], why: str) -> None:
        for job_id in job_ids:
            self.pool.withdraw(job_id, why)

    def _end_after_lost_lease(self) -> None:
        """Kill what runs; the rest is done by the stop that `WorkerExit` has asked for."""
        self.pool.withdraw_all("the worker has lost its lease")

    def on_decode_error(self, message: Message, exc: Exception) -> None:
        """Drop a broken control message."""
        self._drop(message, type(exc).__name__)

    def on_invalid_task(self, body: object, message: Message, exc: Exception) -> None:
        """Drop it without reading its body."""
        self._drop(message, type(exc).__name__)

    def on_unknown_task(self, body: object, message: Message, exc: Exception) -> None:
        """Drop a message of an unknown task without reading its body."""
        self._drop(message, type(exc).__name__)

    def on_unknown_message(self, body: object, message: Message) -> None:
        """Drop a message that is no task without reading its body."""
        self._drop(message, "it is no task")

    def _drop(self, message: Message, reason: str) -> None:
        log.warning("dropped a message that can have no outcome: %s", reason, extra={"action": "message_dropped"})
        message.ack_log_error(log, self.connection_errors)


def is_stopping() -> bool:
    """Whether a signal has asked this process to stop, even if Celery's loop has not seen it."""
    return _is_set("should_stop") or _is_terminating()


def _is_terminating() -> bool:
    return _is_set("should_terminate")


def _is_set(name: str) -> bool:
    """Read a flag as Celery does: the exit code 0 counts as set."""
    value = getattr(state, name)
    return value is not None and value is not False


def _nothing(*_: object) -> None:
    """Do nothing in place of an ack or a reject: the task settles the claim."""
