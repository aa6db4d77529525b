"""What a fleet needs of the thing between it and the workers: Redis for real, memory in tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from sandfleet.channel.records import Answer, BatchState, CancelState, DeadLetter, JobRecord, Look, RunState, Ticket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.records import DeadLetter, Ticket
    from sandfleet.channel.waker import Waker


class JobWatch(Protocol):
    """Hears of the ends of some jobs, and wakes who waits."""

    @property
    def is_alive(self) -> bool:
        """Whether it still hears anything."""
        ...

    def take(self) -> Sequence[str] | None:
        """Return those that have ended since the last call; None where any may have."""
        ...

    def close(self) -> None:
        """Hear no more."""
        ...


class BatchWatch(Protocol):
    """Wakes who waits at the next end of a batch."""

    @property
    def is_alive(self) -> bool:
        """Whether it still hears anything."""
        ...

    def arm(self, place: str) -> None:
        """Wake at the first end behind `place`, once."""
        ...

    def close(self) -> None:
        """Hear no more."""
        ...


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

    def explain_no_claims(self) -> str:
        """Say why workers claim no job at all now, for Redis's memory; empty where they do."""
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

    def watch_jobs(self, job_ids: Sequence[str], waker: Waker) -> JobWatch:
        """Wake `waker` when one of the jobs ends."""
        ...

    def watch_batch(self, name: str, waker: Waker) -> BatchWatch:
        """Wake `waker` when a job of the batch ends."""
        ...

    def earlier_outcome(self, job_id: str, run: int) -> Outcome | None:
        """Return the outcome of a run before the newest one, None where it is kept no more."""
        ...

    def read_batch(self, name: str, place: str = "", limit: int = 0) -> BatchState:
        """Return how far the batch is, and `limit` of its ends behind `place`; without a place none, and that of the newest."""
        ...

    def batch_ids(self, name: str) -> list[str]:
        """Return the batch's jobs in the order of their submit."""
        ...

    def seal(self, name: str) -> None:
        """Note that all jobs of the batch have been submitted; the next submit takes that back."""
        ...

    def forget_batch(self, name: str) -> Iterator[tuple[int, int]]:
        """Delete the batch's jobs that have ended, with outcomes and dead letters; yield how many went and stayed."""
        ...

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return the newest dead letters."""
        ...

    def dead_letter(self, job_id: str) -> DeadLetter | None:
        """Return one, None where there is none."""
        ...

    def dead_runs(self, batch: str | None) -> Iterator[list[tuple[str, int]]]:
        """Yield the ids of dead letters, of one batch or all, and which run of its job each is of; some hundred at a time."""
        ...

    def start_runs(self, runs: Sequence[tuple[str, int]]) -> list[RunState]:
        """Queue dead letters again, each if the run of its job that is given is still the newest."""
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
