"""The fleet's Redis as a `Channel`: jobs go out as stock Celery messages, outcomes are read where Celery stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from sandfleet_config.queues import CANCEL_TTL_SECONDS, SUBMITTED_HEADER, TASK_NAME, cancel_key, job_key, result_key

from sandfleet.channel import JobRecord
from sandfleet.collect import parse_outcome
from sandfleet.connection import PUBLISH_RETRY, Connections
from sandfleet.errors import JobExists

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.settings import Settings

    from sandfleet.channel import Ticket

RECORD_TTL_SECONDS = 9 * 86400
"""Longer than a job may wait in the queue or be kept as a dead letter, and longer than its cancel."""


class RedisChannel:
    """Talks to the fleet through Redis. Connections are lazy and shared by threads; a forked child makes its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._connections = Connections(settings)

    def publish(self, ticket: Ticket) -> None:
        """Leave the job record, then queue the job.

        The record comes first: a job that runs is never unknown. If the queue then fails, the record stays, because the
        message may have arrived all the same; the error names the job.
        """
        self._claim_id(ticket)
        spec = ticket.request.spec
        with self._connections.guard(ticket.job_id):
            self._connections.app.send_task(
                TASK_NAME,
                args=[ticket.text],
                task_id=ticket.job_id,
                queue=self.settings.queue,
                # Fractions of a second are taken, whatever the stubs say.
                soft_time_limit=cast("int", spec.timeout_seconds),
                time_limit=cast("int", spec.timeout_seconds + spec.grace),
                # Workers' logs and Flower show these instead of the arguments; they also save Celery's slow saferepr.
                argsrepr=ticket.record.line,
                kwargsrepr="",
                headers={SUBMITTED_HEADER: ticket.record.submitted},
                retry=True,
                retry_policy=PUBLISH_RETRY,
            )

    def _claim_id(self, ticket: Ticket) -> None:
        key, text = job_key(ticket.job_id), ticket.record.model_dump_json()
        with self._connections.guard():
            client = self._connections.redis
            if client.set(key, text, nx=True, ex=RECORD_TTL_SECONDS):
                return
            # redis-py tries a SET again whose answer was lost: what it then finds may be this very record.
            found = client.get(key)
        if found != text.encode():
            raise JobExists(f"there is a job {ticket.job_id} already", [ticket.job_id])

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        """Read the results Celery stored. What cannot be read is an outcome too: ``INTERNAL``, and why."""
        found = self._get_many(result_key(job_id) for job_id in job_ids)
        return [
            None if raw is None else parse_outcome(raw, job_id, self._read_record)
            for job_id, raw in zip(job_ids, found, strict=True)
        ]

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Read what producers left at submit."""
        return [_parse_record(raw) for raw in self._get_many(job_key(job_id) for job_id in job_ids)]

    def _read_record(self, job_id: str) -> JobRecord | None:
        return self.records([job_id])[0]

    def cancel(self, job_id: str) -> None:
        """Forbid the start, durably, then tell the workers at once; the worker records the end, nobody else."""
        with self._connections.guard():
            self._connections.redis.set(cancel_key(job_id), "cancel", ex=CANCEL_TTL_SECONDS)
            self._connections.app.control.revoke(job_id, terminate=True, signal="TERM")

    def has_workers(self, timeout_seconds: float) -> bool:
        """Ping all workers and return at the first answer."""
        with self._connections.guard():
            control = self._connections.app.control
            answers: Any = control.broadcast("ping", reply=True, timeout=timeout_seconds, limit=1)
        return bool(answers)

    def ping(self) -> None:
        """Ask Redis for a sign of life."""
        with self._connections.guard():
            self._connections.redis.ping()  # pyright: ignore[reportUnknownMemberType]

    def close(self) -> None:
        """Close every connection; the next use opens new ones."""
        self._connections.close()

    def _get_many(self, keys: Iterable[str]) -> list[bytes | None]:
        wanted = list(keys)
        if not wanted:
            return []
        with self._connections.guard():
            return cast("list[bytes | None]", self._connections.redis.mget(wanted))


def _parse_record(raw: bytes | None) -> JobRecord | None:
    if raw is None:
        return None
    try:
        return JobRecord.model_validate_json(raw)
    except ValidationError:
        return JobRecord(submitted=0.0)  # it is there, so the job is known
