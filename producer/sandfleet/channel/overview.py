"""The questions that people ask about batches and jobs, and the values that answer them.

Implemented on Redis and, for tests, in memory. Each call is short; long lists come by pages, so
that neither side keeps a batch in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sandfleet_config.wire import JobRequest

    from sandfleet.channel.fleet_state import Cordon, Pause
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.records import EncodedJob, RunState


class BatchEntry(NamedTuple):
    """A batch in the list of all: its name, counts and times.

    `used` is when the last of its jobs was submitted or run again, `last_end` when the last of them
    ended, both as unix times (0.0: not known). `codes` counts its `ended` jobs by code.
    """

    name: str
    total: int
    ended: int
    codes: Mapping[str, int]
    is_sealed: bool
    used: float = 0.0
    last_end: float = 0.0


class EndedJob(NamedTuple):
    """The end of a job's newest run; `at` is unix time."""

    job_id: str
    run: int
    code: str
    at: float


class Queued(NamedTuple):
    """Where a queued job stands.

    `before` is the number of jobs that come first, of its own queue; None if it is further back
    than `passed` jobs, or was put aside for a moment. `is_served` says whether a live worker takes
    jobs of this queue, and `workers` how many workers live. `pause` is the mark on its queue;
    `cordons` are those of its hosts, if all hosts that take it are marked.
    """

    before: int | None
    passed: int
    workers: int
    is_served: bool
    pause: Pause | None = None
    cordons: tuple[Cordon, ...] = ()


ImageChoice: TypeAlias = Literal["kept", "as_batch", "resolved"]
"""The digest of its image that a next run has.

It is the earlier run's, the one that its batch has for the name, or the one that the name means
now, which is the batch's from then on.
"""


class NextRun(NamedTuple):
    """A wish for the next run of a job whose newest run is `run`.

    `changed` is the job as it shall run, if it is changed; `queue` is the queue that it is in.
    """

    job_id: str
    run: int
    changed: EncodedJob | None = None
    queue: str = ""


class Overview(Protocol):
    """Read batches and jobs, and run jobs again; safe for concurrent use.

    Each method raises `FleetUnavailable` if the transport is down.
    """

    def list_batches(self, first: int, count: int) -> list[BatchEntry]:
        """Return batches `first`, `first` + 1 ... in the order of their last use, newest first.

        Fewer than `count` may be returned: those that have expired are left out. None at all: the
        end.
        """
        ...

    def batch_entry(self, name: str) -> BatchEntry:
        """Return one batch; `total` is 0 if there is none of that name."""
        ...

    def member_pages(self, name: str) -> Iterator[list[str]]:
        """Yield the ids of a batch's jobs in the order of their submit, some hundred at a time."""
        ...

    def ended_pages(self, name: str) -> Iterator[list[EndedJob]]:
        """Yield the ends of a batch's jobs by now, in their order, some hundred at a time."""
        ...

    def newest_ended(self, name: str, count: int) -> list[EndedJob]:
        """Return the newest ends of a batch's jobs, newest first."""
        ...

    def facts(self, job_ids: Sequence[str]) -> list[JobFacts | None]:
        """Return the facts about each job in order, None if there is no such job."""
        ...

    def find_queued(self, job: JobFacts, *, counts: bool = True) -> Queued:
        """Find who takes a queued job; `counts` also counts the jobs before it, by a search of its queue."""
        ...

    def kept_requests(self, job_ids: Sequence[str]) -> list[JobRequest | None]:
        """Return what each job ran, in order; None if that is not kept."""
        ...

    def are_kept(self, job_ids: Sequence[str]) -> list[bool]:
        """Say of each ended job whether what it ran is kept, so that it can run again."""
        ...

    def count_dropped_specs(self) -> int:
        """Return how many kept specs were dropped early, for lack of space."""
        ...

    def start_runs(self, runs: Sequence[NextRun], *, images: ImageChoice = "kept") -> list[RunState]:
        """Queue jobs again, each if the given run is still its newest one and has ended."""
        ...

    def forget_pins(self, name: str) -> None:
        """Forget the batch's digests of image names: the next job looks them up again."""
        ...
