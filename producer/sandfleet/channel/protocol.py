"""The transport between `Fleet` and the workers: implemented on Redis and, for tests, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.batch_control import BatchControl
    from sandfleet.channel.dead_letter import DeadLetter
    from sandfleet.channel.fleet_state import FleetState
    from sandfleet.channel.job_arguments import PackedJobs, SentJob
    from sandfleet.channel.live import LiveOutputs
    from sandfleet.channel.overview import Overview
    from sandfleet.channel.records import (
        BatchState,
        CancelState,
        EncodedJob,
        ExpiryCheck,
        JobRecord,
        NewEntries,
        RunState,
        Submitted,
    )
    from sandfleet.channel.waker import Waker
    from sandfleet.files.objects import Objects


class JobWatch(Protocol):
    """Wakes a waker when one of some jobs ends, and tells which have ended."""

    @property
    def is_alive(self) -> bool:
        """Whether it still receives notices."""
        ...

    def take(self) -> Mapping[str, Outcome | None] | None:
        """Return the jobs that have ended since the last call, None if any may have.

        Each has its outcome, or None where that must be asked for.
        """
        ...

    def close(self) -> None:
        """Receive no more notices."""
        ...


class BatchWatch(Protocol):
    """Wakes a waker when the next job of a batch ends."""

    @property
    def is_alive(self) -> bool:
        """Whether it still receives notices."""
        ...

    def arm(self, cursor: str) -> None:
        """Wake once, at the first stream entry after `cursor`."""
        ...

    def take(self, cursor: str) -> NewEntries | None:
        """Return the entries that woke the wait; None if they are not the first after `cursor`."""
        ...

    def close(self) -> None:
        """Receive no more notices."""
        ...


class PackedPublisher(Protocol):
    """Publishes jobs that other processes have encoded."""

    def publish_packed(
        self, chunks: Iterable[PackedJobs], queue: str, batch: str | None, wanted: int
    ) -> Iterator[tuple[Sequence[SentJob], list[Submitted]]]:
        """Publish as `Channel.publish_chunks` does."""
        ...


class Channel(Protocol):
    """The transport; safe for concurrent use.

    Each method raises `FleetUnavailable` if it is down.
    """

    @property
    def objects(self) -> Objects:
        """The fleet's store: inputs and artifacts."""
        ...

    @property
    def control(self) -> BatchControl:
        """The calls that change the queued jobs of a batch."""
        ...

    @property
    def overview(self) -> Overview:
        """Batches and jobs as people ask for them, and their next runs."""
        ...

    @property
    def fleet_state(self) -> FleetState:
        """Hosts, workers and queues, and the marks that operators put on them."""
        ...

    @property
    def live(self) -> LiveOutputs:
        """The output of running jobs that asked for it."""
        ...

    def publish(self, jobs: Sequence[EncodedJob], queue: str, wanted: int) -> list[Submitted]:
        """Queue jobs of one batch, except those that are there already.

        Raises:
            QueueFull: the queue has no room for `wanted` more jobs; none was queued.
        """
        ...

    def publish_chunks(
        self, chunks: Iterable[Sequence[EncodedJob]], queue: str, wanted: int
    ) -> Iterator[tuple[Sequence[EncodedJob], list[Submitted]]]:
        """Publish chunk by chunk; read the next one from `chunks` while the last is on its way.

        An error that `chunks` raises is raised after the chunk before it was yielded.
        """
        ...

    @property
    def packed_publisher(self) -> PackedPublisher | None:
        """Publishes jobs that other processes encoded; None if only this process can."""
        ...

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        """Return each job's outcome in order, None if there is none yet."""
        ...

    def outcome_chunks(self, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        """Yield job ids with their outcomes, as `outcomes` returns them.

        `chunks` are read one ahead.
        """
        ...

    def earlier_outcome(self, job_id: str, run: int) -> Outcome | None:
        """Return the outcome of a run before the newest one, None if it has expired."""
        ...

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Return each job's record in order, None if there is none."""
        ...

    def explain_no_claims(self) -> str:
        """Return why workers claim no job now, if Redis's memory is the reason; else empty."""
        ...

    def find_largest_budget(self) -> int | None:
        """Return the largest memory budget of a live host in bytes, None if a host's is unknown."""
        ...

    def expire_overdue(self, job_ids: Sequence[str]) -> ExpiryCheck:
        """End queued jobs whose ``queue_ttl`` is over; find jobs without a record."""
        ...

    def cancel(self, job_ids: Sequence[str]) -> list[CancelState]:
        """End each job that is queued, and request the end of each that runs."""
        ...

    def watch_jobs(self, job_ids: Sequence[str], waker: Waker) -> JobWatch:
        """Wake `waker` when one of the jobs ends."""
        ...

    def watch_batch(self, name: str, waker: Waker) -> BatchWatch:
        """Wake `waker` when a job of the batch ends."""
        ...

    def read_batch(self, name: str, cursor: str = "", limit: int = 0) -> BatchState:
        """Return the state of a batch, with up to `limit` stream entries after `cursor`.

        Without a cursor there are no entries, and the state's cursor is that of the newest entry.
        """
        ...

    def ended_chunks(self, name: str, cursor: str) -> Iterator[NewEntries]:
        """Yield stream entries after `cursor`, some hundred at a time; cheaper than `read_batch`.

        Entries of jobs that workers of an older release ended are added by `read_batch` only.
        """
        ...

    def batch_ids(self, name: str) -> list[str]:
        """Return the batch's jobs in the order of their submit."""
        ...

    def batch_page(self, name: str, position: int, limit: int) -> list[str]:
        """Return up to `limit` of the batch's jobs from `position` on, in the order of submit.

        The first jobs leave the list once their outcomes have expired, so the others move forward.
        """
        ...

    def seal(self, name: str, on_done: str = "") -> None:
        """Record that all jobs of the batch have been submitted; the next submit takes that back.

        `on_done` names the endpoint of webhooks that is told when the batch is done; if empty, it
        stays as it was.
        """
        ...

    def forget_batch(self, name: str) -> Iterator[tuple[int, int]]:
        """Delete the batch's ended jobs, with outcomes and dead letters.

        Yield how many were deleted and kept.
        """
        ...

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return the newest dead letters."""
        ...

    def dead_letter(self, job_id: str) -> DeadLetter | None:
        """Return one dead letter, None if there is none."""
        ...

    def dead_runs(self, batch: str | None) -> Iterator[list[tuple[str, int]]]:
        """Yield (job id, run) of all dead letters, or a batch's, some hundred at a time."""
        ...

    def start_runs(self, runs: Sequence[tuple[str, int]], *, resolves_images: bool = False) -> list[RunState]:
        """Queue dead letters again, each if the given run is still the job's newest one.

        `resolves_images`: image names mean what they mean now; default: the digests of the earlier
        runs.
        """
        ...

    def purge_dead(self, job_ids: Sequence[str] | None) -> int:
        """Delete dead letters, all of them for None; return how many."""
        ...

    def count_dropped_dead(self) -> int:
        """Return how many dead letters were dropped early, for lack of space."""
        ...

    def has_workers(self, timeout_seconds: float) -> bool:
        """Whether any worker answers within `timeout_seconds`."""
        ...

    def ping(self) -> None:
        """Return if the transport works."""
        ...

    def close(self) -> None:
        """Close the connections; idempotent."""
        ...
