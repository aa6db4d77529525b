"""`Submitting`: the ways in which `Fleet` queues jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandfleet_config.contract import BATCH_CONTRACT
from sandfleet_config.errors import RequestError
from sandfleet_config.queues import check_queue
from sandfleet_config.webhooks import check_endpoint

from sandfleet.errors import FleetError
from sandfleet.submit.check import JobChecker
from sandfleet.submit.contents import Contents
from sandfleet.submit.encode import JobEncoder
from sandfleet.submit.encoders import LEAST_JOBS, ChunkEncoder, Encoders, count_processes
from sandfleet.submit.required import RequiredObjects
from sandfleet.submit.submission import Submission, add_jobs
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping

    from sandfleet_config.batch_limits import BatchLimits
    from sandfleet_config.settings import Settings
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.protocol import Channel
    from sandfleet.job import Job
    from sandfleet.submit.encoders import Reader
    from sandfleet.traces import SubmitTraces


class Submitting:
    """Part of `Fleet`: it queues jobs."""

    def __init__(self, settings: Settings, channel: Channel) -> None:
        self.settings = settings
        self._channel = channel
        self._traces: SubmitTraces | None = None

    def submit(
        self,
        spec: SandboxSpec | Mapping[str, Any],
        *,
        batch: str | None = None,
        queue: str | None = None,
        job_id: str | None = None,
    ) -> Job:
        """Queue one job and return its handle; the job runs whether or not anybody waits.

        With an ``idempotency_key`` in the spec, returns the job that was submitted before with the
        same key and spec. `queue` defaults to the settings' queue; queues take turns.

        Raises:
            SpecInvalid: the spec (it may be a dict) is faulty, the store lacks one of its files, or
                it asks for more memory than any live host has; ``errors`` has every fault. Nothing
                was queued.
            SecurityViolation: it asks for what no job may have. Nothing was queued.
            SpecTooLarge: it is larger than ``max_spec_bytes``. Nothing was queued.
            IdempotencyConflict: its key belongs to a job with another spec.
            JobExists: another job has the id `job_id`.
            QueueFull: there is no room in the queue, or in Redis. Nothing was queued.
            FleetUnavailable: Redis or the store is out of reach; ``job_ids`` has the job's id if it
                may be queued.
        """
        return self._new_submission(batch, queue).submit_one(spec, job_id)

    submit_async = in_thread(submit)

    def submit_many(
        self,
        specs: Iterable[SandboxSpec | Mapping[str, Any]],
        *,
        batch: str | None = None,
        queue: str | None = None,
        limits: BatchLimits | None = None,
        idempotent: bool = False,
        on_done: str = "",
        on_progress: Callable[[int], object] | None = None,
    ) -> list[Job]:
        """Queue many jobs, some hundred by a call to Redis; return handles in the order of `specs`.

        A list or tuple is checked as a whole before its first job is queued; another iterable is
        read, checked and queued as it comes. `idempotent` gives spec n of `batch` the key
        ``<batch>/<n>`` if it has none: a producer that died repeats the call, and finds jobs that
        are queued already. `on_progress` gets the number of queued jobs after each chunk. `limits`
        replace those of the batch. `on_done` names the endpoint that gets a webhook at its end, and
        after each retry.

        Raises:
            SpecInvalid: specs are faulty; ``errors`` names up to 50 faults (``specs[17].command``).
                Of a list, nothing was queued. An iterator stops at the first faulty spec;
                ``job_ids`` are the jobs of the specs before it, which are queued.
            SecurityViolation: the same, if a spec asks for what no job may have; outranks others.
            SpecTooLarge: the same, if too large specs are the only fault.
            QueueFull: there is no room. Of a list, nothing was queued.
            IdempotencyConflict, FleetUnavailable: as `submit`; ``job_ids`` are, or may be, queued.
            ValueError: `idempotent`, `limits` or `on_done` without a batch, or a bad endpoint name.
        """
        jobs: list[Job] = []
        try:
            for chunk in self._new_submission(batch, queue, limits, on_done, is_keyed=idempotent).submit(specs):
                jobs += chunk
                if on_progress is not None:
                    on_progress(len(jobs))
        except (FleetError, RequestError) as error:
            add_jobs(error, jobs)
            raise
        return jobs

    async def submit_many_async(
        self,
        specs: Iterable[SandboxSpec | Mapping[str, Any]] | AsyncIterable[SandboxSpec | Mapping[str, Any]],
        *,
        batch: str | None = None,
        queue: str | None = None,
        limits: BatchLimits | None = None,
        idempotent: bool = False,
        on_done: str = "",
        on_progress: Callable[[int], object] | None = None,
    ) -> list[Job]:
        """Do what `submit_many` does and leave the event loop free; `specs` may be asynchronous.

        An asynchronous source and `on_progress` run in the event loop, a plain iterator in other
        threads. A cancelled call may still queue the chunk that is under way.
        """
        jobs: list[Job] = []
        try:
            submission = self._new_submission(batch, queue, limits, on_done, is_keyed=idempotent)
            async for chunk in submission.submit_async(specs):
                jobs += chunk
                if on_progress is not None:
                    on_progress(len(jobs))
        except (FleetError, RequestError) as error:
            add_jobs(error, jobs)
            raise
        return jobs

    def submit_chunks(
        self,
        specs: Iterable[SandboxSpec | Mapping[str, Any]] | Encoders,
        *,
        batch: str | None = None,
        queue: str | None = None,
        limits: BatchLimits | None = None,
        idempotent: bool = False,
        on_done: str = "",
    ) -> Iterator[list[Job]]:
        """Do what `submit_many` does, but yield the handles of each chunk once it is queued.

        Memory does not grow with the batch. The specs of the next chunk are read before a chunk is
        yielded.
        """
        return self._new_submission(batch, queue, limits, on_done, is_keyed=idempotent).submit(specs)

    submit_portions = submit_chunks
    """The name of `submit_chunks` in earlier releases."""

    def new_encoders(
        self,
        read: Reader,
        total: int,
        *,
        batch: str | None = None,
        queue: str | None = None,
        limits: BatchLimits | None = None,
        idempotent: bool = False,
    ) -> Encoders | None:
        """Return what checks and encodes many jobs, for `submit_chunks`; for the command line.

        `read` returns the jobs from one index to another, out of `total`. None for few jobs, where
        submits are traced, and where the channel takes jobs of its own process only.
        """
        if self._channel.packed_publisher is None or total < LEAST_JOBS or self.settings.traces.endpoint:
            return None
        try:
            checker = JobChecker(batch, is_keyed=idempotent)
        except RequestError:  # told after the faults of the jobs
            return None
        encoder = self._new_encoder(batch, limits, Contents())
        work = ChunkEncoder(read, total, checker, encoder, self.settings.queue if queue is None else queue)
        return Encoders(work, count_processes(), self._channel.find_largest_budget)

    def _new_encoder(
        self, batch: str | None, limits: BatchLimits | None, contents: Contents, traces: SubmitTraces | None = None
    ) -> JobEncoder:
        return JobEncoder(
            batch,
            self.settings.max_spec_bytes,
            contents,
            least_contract=BATCH_CONTRACT if limits else 1,
            shows_whole=self.settings.shows_whole_commands,
            traces=traces,
        )

    def _new_submission(
        self,
        batch: str | None,
        queue: str | None,
        limits: BatchLimits | None = None,
        on_done: str = "",
        *,
        is_keyed: bool = False,
    ) -> Submission:
        if limits and not batch:
            raise ValueError("limits are those of a batch: give its name")
        if check_endpoint(on_done) and not batch:
            raise ValueError("on_done tells of the end of a batch: give its name")
        name = self.settings.queue if queue is None else check_queue(queue)
        checker = JobChecker(batch, is_keyed=is_keyed, find_largest_budget=self._channel.find_largest_budget)
        contents = Contents()
        encoder = self._new_encoder(batch, limits, contents, self._find_traces())
        required = RequiredObjects(contents, lambda: self._channel.objects, self.settings.result_ttl_seconds)
        how: dict[str, Any] = {"queue": name, "batch": batch, "limits": limits, "on_done": on_done}
        return Submission(self._channel, checker, encoder, required, traces=self._traces, **how)

    def _find_traces(self) -> SubmitTraces | None:
        """Return what traces submits, if the settings want that; opened at the first submit."""
        if self.settings.traces.endpoint and self._traces is None:
            from sandfleet.traces import SubmitTraces

            self._traces = SubmitTraces(self.settings.traces.endpoint)
        return self._traces

    def _close_traces(self) -> None:
        traces, self._traces = self._traces, None
        if traces:
            traces.close()
