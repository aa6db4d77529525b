"""What a fleet needs of the thing between it and the workers: Redis for real, memory in tests."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pydantic import Field
from sandfleet_config.outcome import Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome

    from sandfleet.dead import DeadLetter
    from sandfleet.ticket import Ticket


class JobRecord(Record):
    """What a producer leaves behind at submit; `submitted` is unix time. It holds no env, no stdin and no output."""

    batch: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    line: str = ""
    submitted: float = 0.0
    spec_sha256: str = ""
    queue: str = ""
    state: str = ""
    """``queued``, ``running`` or ``ended`` at the time of the look; not part of what was left."""
    why: str = ""
    """Why a queued job waits, as the host that looked at it last says: "needs 1 GiB of memory, host-07 has 600 MiB free"."""
    why_at: float = 0.0
    """When that was, unix time."""


class AnswerKind(StrEnum):
    """What became of a ticket: queued, or found to be queued before, or in conflict with what is there.

    ``elsewhere`` was queued before, in another batch.
    """

    NEW = "new"
    SAME = "same"
    ELSEWHERE = "elsewhere"
    CONFLICT = "conflict"
    EXISTS = "exists"


class Answer(NamedTuple):
    """What became of a ticket, and the job that stands for it now."""

    kind: AnswerKind
    job_id: str


class CancelState(StrEnum):
    """What a cancel did: ended a job that waited, asked for the end of one that may run, or came too late."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    ENDED = "ended"


class Look(NamedTuple):
    """What a look at awaited jobs showed: those nobody knows, how many it ended, seconds until another expires (None: never)."""

    gone: list[str]
    ended: int
    next_expiry: float | None


class BatchCounts(NamedTuple):
    """How many jobs a batch has, and how many of them have ended."""

    total: int
    done: int


class Channel(Protocol):
    """The way to the workers and back; safe for concurrent use. Each method raises `FleetUnavailable` where it leads nowhere."""

    def publish(self, tickets: Sequence[Ticket], queue: str, wanted: int) -> list[Answer]:
        """Queue jobs of one batch, those that are not there yet; `QueueFull`, and none is, where `wanted` have no room."""
        ...

    def publish_portions(
        self, portions: Iterable[Sequence[Ticket]], queue: str, wanted: int
    ) -> Iterator[tuple[Sequence[Ticket], list[Answer]]]:
        """Publish portion by portion; the next is asked of `portions` while the last is on its way.

        What `portions` raises comes through when that one has been yielded.
        """
        ...

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        """Return each job's outcome in order, None where there is none yet."""
        ...

    def outcome_portions(
        self, portions: Iterable[Sequence[str]]
    ) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        """Yield each portion of job ids with their outcomes, as `outcomes` returns them; `portions` are read one ahead."""
        ...

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return what was left at submit, in order, None where there is nothing."""
        ...

    def look(self, job_ids: Sequence[str]) -> Look:
        """End those of the jobs whose time in the queue is over, and say which of them nobody knows."""
        ...

    def find_largest_budget(self) -> int | None:
        """Return the most memory that the jobs of any live host may have together; None where that is not known of all."""
        ...

    def cancel(self, job_ids: Sequence[str]) -> list[CancelState]:
        """End each job that is queued, and ask for the end of each that runs."""
        ...

    def batch_counts(self, name: str) -> BatchCounts:
        """Return the batch's size and how far it is; zeros where nobody knows it."""
        ...

    def batch_ids(self, name: str) -> list[str]:
        """Return the batch's jobs in the order of their submit."""
        ...

    def done_ids(self, name: str, start: int = 0, limit: int | None = None) -> list[str]:
        """Return those of the batch's jobs that have ended, in the order of their ends, `limit` from `start`."""
        ...

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return the newest dead letters."""
        ...

    def dead_letter(self, job_id: str) -> DeadLetter | None:
        """Return one, None where there is none."""
        ...

    def revive(self, job_id: str) -> str:
        """Queue a dead letter again; ``queued``, or why not: ``unknown``, ``alive``, ``unreadable``."""
        ...

    def purge_dead(self, job_ids: Sequence[str] | None) -> int:
        """Drop dead letters, all of them for None; return how many."""
        ...

    def count_dropped_dead(self) -> int:
        """Return how many dead letters were dropped before their time, as there were too many or they were too large."""
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
