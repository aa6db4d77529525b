"""One submit: check specs, encode them, publish them, and return a handle for each job."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, assert_never

from sandfleet_config.contract import STORED_CONTRACT
from sandfleet_config.errors import RequestError

from sandfleet.channel.publisher import new_unknown_after
from sandfleet.channel.records import SubmitState, Submitted
from sandfleet.errors import FleetError, IdempotencyConflict, JobExists
from sandfleet.job import Job
from sandfleet.submit.chunks import encode_all, gather_specs, split_specs
from sandfleet.submit.encoders import Encoders

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from sandfleet_config.after import AfterSpec
    from sandfleet_config.batch_limits import BatchLimits

    from sandfleet.channel.job_arguments import SentJob
    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.records import EncodedJob
    from sandfleet.submit.check import JobChecker, Spec
    from sandfleet.submit.encode import EncodedRequest, JobEncoder
    from sandfleet.submit.required import RequiredObjects
    from sandfleet.traces import SubmitTraces

_REFUSED = (SubmitState.EXISTS, SubmitState.CONFLICT)


class Submission:
    """Queues jobs of one batch, or of none, in one queue."""

    def __init__(
        self,
        channel: Channel,
        checker: JobChecker,
        encoder: JobEncoder,
        required: RequiredObjects,
        *,
        queue: str,
        batch: str | None,
        on_done: str = "",
        limits: BatchLimits | None = None,
        traces: SubmitTraces | None = None,
    ) -> None:
        self._traces = traces
        self._channel = channel
        self._checker = checker
        self._encoder = encoder
        self._required = required
        self._queue = queue
        self._batch = batch
        self._on_done = on_done
        self._limits = limits

    def submit_one(self, spec: Spec, job_id: str | None) -> Job:
        """Queue one job, under `job_id` if given."""
        request = self._encoder.encode(self._checker.check(spec))
        if request.contract >= STORED_CONTRACT:
            self._required.add(request.shared.spec)
            self._required.send()
        jobs = self._encoder.name([request], job_id)
        submitted = self._channel.publish(jobs, self._queue, 1)
        return self._new_handles(jobs, submitted)[0]

    def submit(self, specs: Iterable[Spec] | Encoders) -> Iterator[list[Job]]:
        """Yield the handles of each chunk, then seal the batch.

        A list or tuple is checked as a whole before its first job is queued, and the queue must
        have room for all of it. Encoders have checked their jobs.
        """
        if isinstance(specs, Encoders):
            return self._seal_after(self._publish_encoded(specs))
        if isinstance(specs, list | tuple):
            cached = encode_all(self._check_and_encode, specs)
            self._refuse_unknown(cached)
            self._required.send()
            return self._seal_after(self._publish(specs, wanted=len(specs), cached=cached))
        return self._seal_after(self._publish(specs))

    def _check_and_encode(self, spec: Spec, index: int) -> EncodedRequest:
        request = self._encoder.encode(self._checker.check(spec, index))
        if request.contract >= STORED_CONTRACT:
            self._required.add(request.shared.spec, f"specs[{index}].")
        return request

    def _refuse_unknown(self, requests: Sequence[EncodedRequest]) -> None:
        """Refuse a list with a job that waits for a missing one, before its first job is queued."""
        checked: set[AfterSpec] = set()
        for request in requests:
            after = request.shared.spec.after
            if after and after not in checked:
                checked.add(after)
                if unknown := self._channel.control.find_unknown(after):
                    raise new_unknown_after(unknown)

    def _name(self, requests: Sequence[EncodedRequest]) -> list[EncodedJob]:
        self._required.send()
        return self._encoder.name(requests)

    def _publish(
        self, specs: Iterable[Spec], first: int = 0, wanted: int = 0, cached: Sequence[EncodedRequest] = ()
    ) -> Iterator[list[Job]]:
        self._set_limits()
        requests = split_specs(self._check_and_encode, specs, first, cached)
        chunks = map(self._name, requests)
        for jobs, submitted in self._channel.publish_chunks(chunks, self._queue, wanted):
            yield self._new_handles(jobs, submitted)

    def _publish_encoded(self, encoders: Encoders) -> Iterator[list[Job]]:
        publisher = self._channel.packed_publisher
        if publisher is None:
            raise ValueError("this channel queues no jobs that other processes encoded")
        self._set_limits()
        chunks = encoders.encode()
        for jobs, submitted in publisher.publish_packed(chunks, self._queue, self._batch, len(encoders)):
            yield self._new_handles(jobs, submitted)

    def _set_limits(self) -> None:
        """Set the limits of the batch before its first job is queued."""
        if self._limits is not None and self._batch:
            self._channel.control.set_limits(self._batch, self._limits, is_submit=True)
            self._limits = None

    def submit_part(self, specs: Sequence[Spec], first: int) -> list[Job]:
        """Queue some of the specs, numbered from `first` on; `seal` follows the last of them.

        The `job_ids` of an error are those that are, or may be, queued.
        """
        found: list[Job] = []
        try:
            for jobs in self._publish(specs, first):
                found += jobs
        except (FleetError, RequestError) as error:
            add_jobs(error, found)
            raise
        return found

    def _seal_after(self, chunks: Iterator[list[Job]]) -> Iterator[list[Job]]:
        yield from chunks
        self.seal()

    def seal(self) -> None:
        """Say that all jobs of the batch have been submitted."""
        if self._batch:
            self._channel.seal(self._batch, self._on_done)

    async def submit_async(self, specs: Iterable[Spec] | AsyncIterable[Spec]) -> AsyncIterator[list[Job]]:
        """Do what `submit` does in other threads, one after the other.

        An asynchronous source is read here.
        """
        if not isinstance(specs, AsyncIterable):
            async for jobs in _read_in_threads(await asyncio.to_thread(self.submit, specs)):
                yield jobs
            return
        first = 0
        async for some in gather_specs(specs):
            async for jobs in _read_in_threads(self._publish(some, first)):
                yield jobs
            first += len(some)
        await asyncio.to_thread(self.seal)

    def _new_handles(self, jobs: Sequence[EncodedJob | SentJob], submitted: Sequence[Submitted]) -> list[Job]:
        if self._traces:
            self._traces.end(job.job_id for job in jobs)
        return [
            Job(found.job_id, self._channel, job.batch)
            if found.state is SubmitState.NEW
            else self._new_handle(job, found, submitted)
            for job, found in zip(jobs, submitted, strict=True)
        ]

    def _new_handle(self, job: EncodedJob | SentJob, found: Submitted, others: Sequence[Submitted]) -> Job:
        """Return the handle of a job; `others` are all jobs of the same call.

        Raises:
            JobExists: another job has its id.
            IdempotencyConflict: its key belongs to a job with another spec.
        """
        match found.state:
            case SubmitState.NEW | SubmitState.SAME:
                return Job(found.job_id, self._channel, job.batch)
            case SubmitState.ELSEWHERE:
                return Job(found.job_id, self._channel)
            case SubmitState.EXISTS:
                raise JobExists(f"there is a job {job.job_id} already", [job.job_id])
            case SubmitState.CONFLICT:
                raise IdempotencyConflict(
                    f"idempotency key {job.key!r} stands for job {found.job_id}, which was submitted with another spec:"
                    " give the new job a key of its own, or submit it as it was",
                    job.key,
                    found.job_id,
                    [other.job_id for other in others if other.state not in _REFUSED],
                )
            case _:
                assert_never(found.state)


def add_jobs(error: FleetError | RequestError, jobs: Iterable[Job]) -> None:
    """Put the ids of `jobs`, which were queued before, in front of the error's own."""
    error.job_ids = tuple(dict.fromkeys([*(job.id for job in jobs), *error.job_ids]))


async def _read_in_threads(chunks: Iterator[list[Job]]) -> AsyncIterator[list[Job]]:
    while (jobs := await asyncio.to_thread(next, chunks, None)) is not None:
        yield jobs
