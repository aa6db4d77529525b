"""`Running`: what `Fleet` does with jobs that it submits and waits for by itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sandfleet.errors import FleetError
from sandfleet.submit.mapping import MapStream
from sandfleet.submit.submitting import Submitting

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Mapping

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.job import Job

AHEAD_JOBS: Final = 1000
Item = TypeVar("Item")


async def _cancel_job(submitting: asyncio.Future[Job]) -> None:
    """Cancel the job once it is queued: a submit that is under way cannot be called back."""
    await asyncio.wait([submitting])
    if not submitting.cancelled() and submitting.exception() is None:
        with suppress(FleetError):
            await submitting.result().cancel_async()


class Running(Submitting):
    """Part of `Fleet`: it runs jobs to their ends."""

    def run(
        self,
        spec: SandboxSpec | Mapping[str, Any],
        *,
        timeout: float | None = None,
        batch: str | None = None,
        queue: str | None = None,
    ) -> Outcome:
        """Submit one job, wait for its end and return its outcome, whatever its code.

        The job is cancelled if this call ends early: by `timeout` (seconds, the wait in the queue
        included; that of the program is ``spec.timeout``), by Ctrl-C or by another exception.

        Raises:
            ResultTimeout: it has not ended in time; it is cancelled.
            SpecInvalid, SecurityViolation, SpecTooLarge, QueueFull, FleetUnavailable: as `submit`.
        """
        job = self.submit(spec, batch=batch, queue=queue)
        try:
            return job.outcome(timeout)
        except BaseException:
            with suppress(FleetError):
                job.cancel()
            raise

    async def run_async(
        self,
        spec: SandboxSpec | Mapping[str, Any],
        *,
        timeout: float | None = None,  # noqa: ASYNC109  as `run`
        batch: str | None = None,
        queue: str | None = None,
    ) -> Outcome:
        """Do what `run` does and leave the event loop free; the job is cancelled if the task is."""
        submitting = asyncio.ensure_future(self.submit_async(spec, batch=batch, queue=queue))
        try:
            job = await asyncio.shield(submitting)
            return await job.outcome_async(timeout)
        except BaseException:
            await asyncio.shield(_cancel_job(submitting))
            raise

    def map(
        self,
        spec_of: Callable[[Item], SandboxSpec | Mapping[str, Any]],
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        batch: str | None = None,
        queue: str | None = None,
        ahead: int = AHEAD_JOBS,
        idempotent: bool = False,
        timeout: float | None = None,
    ) -> MapStream[Item]:
        """Run a job for each item; return ``(item, outcome)``, for ``for`` and ``async for``.

        Pairs come as the jobs end. At most `ahead` jobs are submitted whose outcomes have not been
        returned, so `items` may be endless. If the queue is full, it waits for its own jobs. With a
        `batch`, ends are read from the batch's stream, and `idempotent` gives item n the key
        ``<batch>/<n>``: a producer that died repeats the call, and each item comes with the outcome
        that it has.

        Raises, while iterated:
            SpecInvalid, SecurityViolation, SpecTooLarge: the spec of an item is faulty.
            QueueFull: the queue is full with jobs of others.
            ResultTimeout: `timeout` seconds after the iteration began, jobs have not ended.
            JobUnknown: Redis has forgotten a job; raised after all other outcomes.
            FleetUnavailable: Redis or the store is out of reach.
        """
        if idempotent and not batch:
            raise ValueError("idempotent needs a batch: the keys of its jobs begin with its name")
        return MapStream(
            self._channel,
            lambda: self._new_submission(batch, queue, is_keyed=idempotent),
            spec_of,
            items,
            ahead=ahead,
            batch=batch,
            timeout=timeout,
        )
