"""What a fleet needs of the thing between it and the workers: Redis for real, memory in tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from sandfleet_config.outcome import Record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.wire import JobRequest


class JobRecord(Record):
    """What a producer leaves behind at submit; `submitted` is unix time. It holds no env, no stdin and no output."""

    batch: str | None = None
    line: str = ""
    submitted: float
    spec_sha256: str = ""


@dataclass(frozen=True)
class Ticket:
    """A job ready to be queued: `text` is its encoded request."""

    job_id: str
    request: JobRequest
    text: str
    record: JobRecord


class Channel(Protocol):
    """The way to the workers and back; safe for concurrent use. Each method raises `FleetUnavailable` where it leads nowhere."""

    def publish(self, ticket: Ticket) -> None:
        """Queue a job; `JobExists` where another has its id."""
        ...

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        """Return each job's outcome in order, None where there is none yet."""
        ...

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return what was left at submit, in order, None where there is nothing."""
        ...

    def cancel(self, job_id: str) -> None:
        """Ask for the end of a job that is queued or runs."""
        ...

    def has_workers(self, timeout_seconds: float) -> bool:
        """Whether any worker answers."""
        ...

    def ping(self) -> None:
        """Return if the way is open."""
        ...

    def close(self) -> None:
        """Give connections back; idempotent."""
        ...
