"""The handle of one submitted job."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandfleet_config.seed_result import to_result

from sandfleet.channel.records import CancelState
from sandfleet.collect.live_stream import LiveStream
from sandfleet.collect.stream import OutcomeStream
from sandfleet.errors import JobUnknown
from sandfleet.files.artifacts import JobArtifacts
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.outcome import Outcome, SandboxResult

    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.waker import CancelSignal


@dataclass(frozen=True)
class CancelResult:
    """Result of a cancel.

    `code` is the job's code if it had ended before, else None. `is_ended` says that the job was
    queued and has ended without a start. Else its end was requested.
    """

    job_id: str
    code: ErrorCode | None = None
    is_ended: bool = False

    @property
    def is_requested(self) -> bool:
        """Whether the job had not ended before.

        Its outcome will be ``CANCELLED`` unless it ends first.
        """
        return self.code is None

    def __str__(self) -> str:
        """Describe the result."""
        if self.code is not None:
            return f"already ended: {self.code.value}"
        return "cancelled before it started" if self.is_ended else "cancel requested"


class Job:
    """A handle of one job; cheap to make, safe for concurrent use. Two handles of one id are equal.

    `batch` is the name of its batch, None if it has none or the handle does not know it.
    """

    __slots__ = ("_channel", "batch", "id")

    def __init__(self, job_id: str, channel: Channel, batch: str | None = None) -> None:
        self.id = job_id
        self.batch = batch
        self._channel = channel

    def __eq__(self, other: object) -> bool:
        """Compare by id."""
        return isinstance(other, Job) and self.id == other.id

    def __hash__(self) -> int:
        """Hash by id."""
        return hash(self.id)

    def __repr__(self) -> str:
        """Name the job only."""
        return f"Job({self.id!r})"

    @property
    def is_done(self) -> bool:
        """Whether the job's newest run has ended."""
        return self._find_outcome() is not None

    def _find_outcome(self) -> Outcome | None:
        found = self._channel.outcomes([self.id])[0]
        if found is None and self._channel.expire_overdue([self.id]).ended:
            found = self._channel.outcomes([self.id])[0]
        return found

    def outcome(self, timeout: float | None = None, *, run: int | None = None) -> Outcome:
        """Wait for the newest run to end and return its outcome; no kind of ending is raised.

        `run` is the number of a run, from 1. The outcome of an earlier run is kept for its own TTL.

        Raises:
            ResultTimeout: it has not ended within `timeout` seconds (None: no timeout, 0: do not
                wait). The job goes on.
            JobUnknown: Redis has forgotten the job or that run, or there is no such run.
            FleetUnavailable: Redis is out of reach.
        """
        if run is not None and (earlier := self._find_run(run)) is not None:
            return earlier
        (outcome,) = OutcomeStream(self._channel, [self.id], timeout)
        return outcome

    def _find_run(self, run: int) -> Outcome | None:
        """Return the outcome of a run before the newest one; None if `run` is the newest."""
        earlier = self._channel.earlier_outcome(self.id, run)
        if earlier is not None:
            return earlier
        record = self._channel.records([self.id])[0]
        newest = record.run if record is not None else 1
        if run == newest:
            return None
        what = "has been forgotten" if 0 < run < newest else f"does not exist: its newest is run {newest}"
        raise JobUnknown(f"run {run} of job {self.id} {what}", [self.id])

    def stream(self, timeout: float | None = None, *, follow: bool = True) -> LiveStream:
        """Return the program's output in chunks as it comes; for ``for`` and for ``async for``.

        The spec must say ``output={"live": True}``. It ends with the job's newest run, and without
        `follow` as soon as all is read that is there now. Redis keeps the newest MiB, for 10 minutes
        after the end; `OutputChunk.skipped` tells what is missing. `LiveStream` names the errors.
        """
        return LiveStream(self._channel, self.id, timeout, follows=follow)

    def wait(self, timeout: float | None = None, cancel: CancelSignal | None = None) -> Outcome | None:
        """Do what `outcome` does, but return None as soon as `cancel` is set; the job goes on."""
        return next(iter(OutcomeStream(self._channel, [self.id], timeout, cancel=cancel)), None)

    async def wait_async(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  as `wait`
        cancel: CancelSignal | None = None,
    ) -> Outcome | None:
        """Do what `wait` does and leave the event loop free."""
        stream = OutcomeStream(self._channel, [self.id], timeout, cancel=cancel)
        return next(iter([outcome async for outcome in stream]), None)

    async def outcome_async(
        self,
        timeout: float | None = None,  # noqa: ASYNC109  as `outcome`
        *,
        run: int | None = None,
    ) -> Outcome:
        """Do what `outcome` does and leave the event loop free."""
        if run is not None and (earlier := await asyncio.to_thread(self._find_run, run)) is not None:
            return earlier
        (outcome,) = [outcome async for outcome in OutcomeStream(self._channel, [self.id], timeout)]
        return outcome

    def result(self, timeout: float | None = None) -> SandboxResult:
        """Wait for the end and return the program's result, whatever its exit code.

        Raises:
            SandboxError: the program did not run to its own end; the class is that of the outcome's
                code.
            ResultTimeout, JobUnknown, FleetUnavailable: as `outcome`.
        """
        return to_result(self.outcome(timeout))

    async def result_async(self, timeout: float | None = None) -> SandboxResult:  # noqa: ASYNC109  as `result`
        """Do what `result` does and leave the event loop free."""
        return to_result(await self.outcome_async(timeout))

    @property
    def artifacts(self) -> JobArtifacts:
        """The files that its newest run left, as a list; the first use waits, as `outcome` does.

        ``job.artifacts.save("results")`` saves them; ``job.artifacts.open("out/a.csv")`` reads one.
        """
        return JobArtifacts(self.outcome, lambda: self._channel.objects)

    def cancel(self) -> CancelResult:
        """End the job if it is queued, or request its end if it runs; may be repeated.

        The outcome of a running job appears when its sandbox is gone.
        """
        if (outcome := self._find_outcome()) is not None:
            return CancelResult(self.id, outcome.code)
        match self._channel.cancel([self.id])[0]:
            case CancelState.CANCELLED:
                return CancelResult(self.id, is_ended=True)
            case CancelState.ENDED if (outcome := self._find_outcome()) is not None:  # meanwhile
                return CancelResult(self.id, outcome.code)
            case _:
                return CancelResult(self.id)

    cancel_async = in_thread(cancel)
