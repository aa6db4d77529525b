"""`Batch`: a named batch of jobs."""

from __future__ import annotations

from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING, NamedTuple

from sandfleet_config.spec import LAST_PRIORITY
from sandfleet_config.webhooks import check_endpoint

from sandfleet.channel.records import BatchCounts, BatchState, CancelState
from sandfleet.channel.waker import CancelRelay, Waker
from sandfleet.collect.batch_end import BatchEnd
from sandfleet.collect.batch_output import BatchOutput
from sandfleet.collect.ended_list import EndedList
from sandfleet.collect.polling import split
from sandfleet.collect.steps import drive, drive_async
from sandfleet.collect.stream import BatchStream
from sandfleet.files.artifacts import BatchArtifacts
from sandfleet.job import Job
from sandfleet.results.tabular import Tabular
from sandfleet.retry.batch_overview import BatchOverview
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandfleet_config.batch_limits import BatchLimits
    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.batch_control import LimitsState
    from sandfleet.channel.waker import CancelSignal


class Forgotten(NamedTuple):
    """How many jobs of a batch were deleted, and how many were kept because they have not ended."""

    forgotten: int
    kept: int


class Batch(BatchOverview, Tabular):
    """A handle of one batch; cheap to make, safe for concurrent use."""

    def __repr__(self) -> str:
        """Name the batch only."""
        return f"Batch({self.name!r})"

    @property
    def counts(self) -> BatchCounts:
        """The number of jobs submitted so far (`total`) and of those that have ended (`done`)."""
        state = self._channel.read_batch(self.name)
        return BatchCounts(state.total, state.ended)

    @property
    def codes(self) -> dict[str, int]:
        """The number of jobs that ended with each code; the newest run of each job counts."""
        return dict(self._channel.read_batch(self.name).codes)

    @property
    def is_sealed(self) -> bool:
        """Whether all jobs were submitted: `submit_many` and `seal` set it, a submit resets it."""
        return self._channel.read_batch(self.name).is_sealed

    def seal(self, on_done: str = "") -> None:
        """Record that all jobs have been submitted; for jobs that were submitted one by one.

        `on_done` names the endpoint that gets a webhook once all of them have ended, and again
        after each retry; if empty, the batch keeps the endpoint that it has.

        Raises:
            ValueError: no endpoint may have that name.
        """
        self._channel.seal(self.name, check_endpoint(on_done))

    seal_async = in_thread(seal)

    @property
    def is_done(self) -> bool:
        """Whether every job submitted so far has ended."""
        total, done = self.counts
        return done >= total

    @property
    def job_ids(self) -> list[str]:
        """The ids of its jobs, in the order of their submit."""
        return self._channel.batch_ids(self.name)

    @property
    def jobs(self) -> list[Job]:
        """Its jobs, in the order of their submit."""
        return [Job(job_id, self._channel, self.name) for job_id in self.job_ids]

    def as_completed(self, timeout: float | None = None) -> BatchStream:
        """Return outcomes: of ended jobs, then of others as they end; for ``for``, ``async for``.

        Its cost does not depend on the number of queued jobs. It ends when all jobs that were
        submitted by then have ended, whether or not the batch is sealed. Each job comes once, and
        again if it is run again meanwhile.
        """
        return BatchStream(self._channel, self.name, timeout)

    def stream(
        self,
        timeout: float | None = None,
        *,
        cancel: CancelSignal | None = None,
        on_round: Callable[[], object] = lambda: None,
    ) -> BatchOutput:
        """Return (job id, chunk) of the output of its running jobs; for ``for``, ``async for``.

        Of jobs whose specs say ``output={"live": True}``. It ends with the batch, or when `cancel`
        is set. `on_round` is called some times a second, also while no output comes.
        """
        return BatchOutput(self._channel, self.name, timeout, cancel=cancel, on_round=on_round)

    def wait(
        self, timeout: float | None = None, *, on_counts: Callable[[BatchState], object] = lambda _: None
    ) -> dict[str, int]:
        """Wait until all jobs have ended; return how many ended with each code.

        It reads no outcomes. `on_counts` is called with the counts, at most ten times a second.

        Raises:
            ResultTimeout: they have not ended within `timeout` seconds (None: no timeout).
            FleetUnavailable: Redis is out of reach.
        """
        state = BatchState()
        with closing(BatchEnd(self._channel, self.name, timeout)) as steps:
            for state in drive(steps, CancelRelay(steps.waker, None)):
                on_counts(state)
        return dict(sorted(state.codes.items()))

    async def wait_async(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  as `wait`
        *,
        on_counts: Callable[[BatchState], object] = lambda _: None,
    ) -> dict[str, int]:
        """Do what `wait` does and leave the event loop free; `on_counts` runs in the event loop."""
        state = BatchState()
        with closing(BatchEnd(self._channel, self.name, timeout)) as steps:
            async for state in drive_async(steps):
                on_counts(state)
        return dict(sorted(state.codes.items()))

    @property
    def artifacts(self) -> BatchArtifacts:
        """The files that its jobs left, job by job.

        Iterating and saving wait for all jobs, as `as_completed`.
        """
        return BatchArtifacts(self.as_completed, lambda: self._channel.objects)

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes of all ended jobs, in the order in which they ended."""
        chunks = self._channel.outcome_chunks(self._ended_chunks())
        return [outcome for _, found in chunks for outcome in found if outcome is not None]

    def _ended_chunks(self) -> Iterator[Sequence[str]]:
        for entries in EndedList(self._channel, self.name, Waker()).read_new():
            yield from split([job_id for job_id, _ in entries])

    outcomes_async = in_thread(outcomes)

    def forget(self, on_progress: Callable[[int], object] | None = None) -> Forgotten:
        """Delete all ended jobs, with their outcomes and dead letters; keep the others.

        This cannot be undone. Some hundred jobs at a time, so that Redis serves others in between;
        `on_progress` is called with the number of deleted jobs.
        """
        forgotten = kept = 0
        for deleted, not_ended in self._channel.forget_batch(self.name):
            forgotten, kept = forgotten + deleted, kept + not_ended
            if on_progress is not None:
                on_progress(forgotten)
        return Forgotten(forgotten, kept)

    forget_async = in_thread(forget)

    def cancel(self) -> Counter[CancelState]:
        """Cancel all jobs submitted so far; return how many jobs are in each state."""
        counts: Counter[CancelState] = Counter()
        for chunk in split(self.job_ids):
            counts.update(self._channel.cancel(chunk))
        return counts

    cancel_async = in_thread(cancel)

    @property
    def limits(self) -> LimitsState:
        """Its limits, the number of counted failures, whether it is held or stopped, and why."""
        return self._channel.control.read_limits(self.name)

    def set_limits(self, limits: BatchLimits) -> None:
        """Replace the limits of the batch; failures are counted anew, and a deadline begins now.

        Workers of releases before contract 5 know no limits, and take jobs that were submitted
        without.
        """
        self._channel.control.set_limits(self.name, limits, is_submit=False)

    def hold(self) -> None:
        """Let no more of its jobs start, until `release`; what runs goes on.

        The time in the queue goes on, too.
        """
        self._channel.control.hold(self.name)

    def release(self) -> int:
        """End a hold or a stop; return how many jobs went back to their queues at once."""
        return self._channel.control.release(self.name)

    def set_priority(self, priority: int) -> int:
        """Give its queued jobs another priority (0 first, to 9); return how many got it.

        They come before other jobs of that priority.

        Raises:
            ValueError: there is no such priority.
        """
        if not 0 <= priority <= LAST_PRIORITY:
            raise ValueError(f"a priority is 0 (first) to {LAST_PRIORITY}, not {priority}")
        return self._channel.control.set_priority(self.name, priority)

    set_limits_async = in_thread(set_limits)
    hold_async = in_thread(hold)
    release_async = in_thread(release)
    set_priority_async = in_thread(set_priority)
