"""A `SandboxRunner` on the fleet: submit, wait, and cancel at the caller's deadline or request."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from sandfleet_config.errors import Cancelled, SandboxTimeout
from sandfleet_config.seed_result import to_result

from sandfleet.errors import FleetError, ResultTimeout
from sandfleet.execute.interfaces import RunResult

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.waker import CancelSignal
    from sandfleet.job import Job


class Submitter(Protocol):
    """Queues one job: `sandfleet.Fleet`."""

    def submit(self, spec: SandboxSpec, /) -> Job:
        """Queue `spec` and return the job's handle."""
        ...

    def submit_async(self, spec: SandboxSpec, /) -> Coroutine[Any, Any, Job]:
        """Do what `submit` does and leave the event loop free."""
        ...


KILL_SECONDS: Final = 10.0
"""How long to wait for the outcome of a cancelled job, whose sandbox is being killed."""


class FleetRunner:
    """A `SandboxRunner` that submits to a fleet and waits; safe for concurrent use."""

    def __init__(self, fleet: Submitter) -> None:
        self._fleet = fleet

    def run(self, spec: SandboxSpec, *, deadline: float | None = None, cancel: CancelSignal | None = None) -> RunResult:
        """Submit `spec` and wait for its end; at `deadline`, or on `cancel`, the job is cancelled.

        Raises:
            SandboxError: the class of any code but ``OK`` and ``EXIT_NONZERO``; at the deadline
                `SandboxTimeout`.
            FleetUnavailable: Redis is out of reach.
        """
        job = self._fleet.submit(spec)
        outcome = _wait(job, deadline, cancel)
        if outcome is None:
            job.cancel()
            with contextlib.suppress(ResultTimeout):
                outcome = job.outcome(KILL_SECONDS)
            outcome = _judge_stopped(outcome, deadline)
        return _to_run_result(outcome)

    async def run_async(self, spec: SandboxSpec, *, deadline: float | None = None) -> RunResult:
        """Do what `run` does and leave the event loop free; the job is cancelled if the task is.

        Raises:
            SandboxError, FleetUnavailable: as `run`.
        """
        timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
        job = await self._fleet.submit_async(spec)
        try:
            outcome = await job.outcome_async(timeout)
        except ResultTimeout:
            await job.cancel_async()
            stopped: Outcome | None = None
            with contextlib.suppress(ResultTimeout):
                stopped = await job.outcome_async(KILL_SECONDS)
            outcome = _judge_stopped(stopped, deadline)
        except BaseException:
            with contextlib.suppress(FleetError):
                await asyncio.shield(job.cancel_async())
            raise
        return _to_run_result(outcome)


def _judge_stopped(outcome: Outcome | None, deadline: float | None) -> Outcome:
    """Return the outcome of a job that was cancelled, if its program had ended by itself before.

    Raises:
        SandboxTimeout: the deadline has passed.
        Cancelled: the cancel was requested, and the end is not known yet.
    """
    is_ours = outcome is None or not outcome.code.is_own_end
    if is_ours and deadline is not None and time.monotonic() >= deadline:
        raise SandboxTimeout.of(
            "the caller's deadline passed, the job was cancelled", outcome.to_json() if outcome else None
        )
    if outcome is None:
        raise Cancelled.of("the cancel was requested; the job's end is not known yet")
    return outcome


def _to_run_result(outcome: Outcome) -> RunResult:
    return RunResult(**dict(to_result(outcome)), outcome=outcome)


def _wait(job: Job, deadline: float | None, cancel: CancelSignal | None) -> Outcome | None:
    """Return the outcome, None if the deadline or the cancel came first."""
    if cancel is not None and cancel.wait(0):
        return None
    timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
    try:
        return job.wait(timeout, cancel)
    except ResultTimeout:
        return None
