"""`Fleet`: submit jobs, find them again, collect their outcomes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError
from sandfleet_config.environment import check_environment, describe_settings_faults
from sandfleet_config.errors import RequestError
from sandfleet_config.execute import ExecuteRequest
from sandfleet_config.queues import JOB_ID, check_queue
from sandfleet_config.settings import Settings, SettingsInvalid
from sandfleet_config.wire import raise_faults

from sandfleet.batch import Batch
from sandfleet.collect.stream import OutcomeStream
from sandfleet.dead_letters import DeadLetters
from sandfleet.errors import BatchUnknown, FleetError, JobUnknown
from sandfleet.execute.backend import Backend, Config
from sandfleet.execute.fleet_runner import FleetRunner
from sandfleet.files.transfers import Transfers
from sandfleet.job import Job
from sandfleet.overview.fleet_overview import FleetOverview
from sandfleet.submit.check import JobChecker
from sandfleet.submit.contents import Contents
from sandfleet.submit.encode import JobEncoder
from sandfleet.submit.required import RequiredObjects
from sandfleet.submit.submission import Submission

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from sandfleet_config.execute import ExecuteResult
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.records import JobRecord
    from sandfleet.files.objects import Objects


def read_settings() -> Settings:
    """Read ``SANDFLEET_*`` from the environment.

    Raises:
        SettingsInvalid: a variable is no setting, or its value is not valid; names every fault,
            repeats no value.
    """
    check_environment()
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsInvalid(describe_settings_faults(error)) from None


class Fleet(Transfers, FleetOverview):
    """A fleet of workers behind one Redis; for ``with`` and ``async with``.

    Safe for concurrent use, also in a forked child. Nothing is connected before the first use.
    `settings` default to the environment's ``SANDFLEET_*``.
    """

    def __init__(self, settings: Settings | None = None, *, channel: Channel | None = None) -> None:
        self.settings = read_settings() if settings is None else settings
        if channel is None:
            from sandfleet.channel.redis_channel import RedisChannel

            channel = RedisChannel(self.settings)
        self._channel = channel

    def __enter__(self) -> Self:
        """Return the fleet itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections; jobs go on."""
        self.close()

    async def __aenter__(self) -> Self:
        """Return the fleet itself; nothing is connected yet."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connections; jobs go on."""
        await asyncio.to_thread(self.close)

    def close(self) -> None:
        """Close the connections; jobs go on, and a later use connects again."""
        self._channel.close()

    def ping(self) -> None:
        """Return if Redis answers.

        Raises:
            FleetUnavailable: it does not; the message says why.
        """
        self._channel.ping()

    def has_workers(self, timeout_seconds: float = 1.0) -> bool:
        """Whether any worker answers within `timeout_seconds`; returns at the first answer."""
        return self._channel.has_workers(timeout_seconds)

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

    def submit_many(
        self,
        specs: Iterable[SandboxSpec | Mapping[str, Any]],
        *,
        batch: str | None = None,
        queue: str | None = None,
        idempotent: bool = False,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[Job]:
        """Queue many jobs, a few hundred by one call to Redis; return their handles in the order of `specs`.

        A list or tuple is checked as a whole before its first job is queued. Other iterables are
        read, checked and queued as they come. `idempotent` gives spec n of `batch` the key
        ``<batch>/<n>`` if it has none: a producer that died repeats the call, and jobs that are
        queued already are found. `on_progress` is called with the number of queued jobs after each
        chunk.

        Raises:
            SpecInvalid: specs are faulty; ``errors`` names up to 50 faults (``specs[17].command``).
                Of a list, nothing was queued. An iterator stops at the first faulty spec;
                ``job_ids`` are the jobs of the specs before it, which are queued.
            SecurityViolation: the same, if a spec asks for what no job may have; outranks other
                faults.
            SpecTooLarge: the same, if too large specs are the only fault.
            QueueFull: there is no room. Of a list, nothing was queued.
            IdempotencyConflict, FleetUnavailable: as `submit`; ``job_ids`` are, or may be, queued.
            ValueError: `idempotent` without a batch.
        """
        jobs: list[Job] = []
        try:
            for chunk in self.submit_chunks(specs, batch=batch, queue=queue, idempotent=idempotent):
                jobs += chunk
                if on_progress is not None:
                    on_progress(len(jobs))
        except (FleetError, RequestError) as error:
            _add_jobs(error, jobs)
            raise
        return jobs

    async def submit_many_async(
        self,
        specs: Iterable[SandboxSpec | Mapping[str, Any]] | AsyncIterable[SandboxSpec | Mapping[str, Any]],
        *,
        batch: str | None = None,
        queue: str | None = None,
        idempotent: bool = False,
        on_progress: Callable[[int], object] | None = None,
    ) -> list[Job]:
        """Do what `submit_many` does and leave the event loop free; `specs` may be asynchronous.

        An asynchronous source and `on_progress` run in the event loop, a plain iterator in other
        threads. A cancelled call may still queue the chunk that is under way.
        """
        jobs: list[Job] = []
        try:
            async for chunk in self._new_submission(batch, queue, is_keyed=idempotent).submit_async(specs):
                jobs += chunk
                if on_progress is not None:
                    on_progress(len(jobs))
        except (FleetError, RequestError) as error:
            _add_jobs(error, jobs)
            raise
        return jobs

    def submit_chunks(
        self,
        specs: Iterable[SandboxSpec | Mapping[str, Any]],
        *,
        batch: str | None = None,
        queue: str | None = None,
        idempotent: bool = False,
    ) -> Iterator[list[Job]]:
        """Do what `submit_many` does, but yield the handles of each chunk once it is queued.

        Memory does not grow with the batch. The specs of the next chunk are read before a chunk is
        yielded.
        """
        return self._new_submission(batch, queue, is_keyed=idempotent).submit(specs)

    submit_portions = submit_chunks
    """The name of `submit_chunks` in earlier releases."""

    def _new_submission(self, batch: str | None, queue: str | None, *, is_keyed: bool = False) -> Submission:
        name = self.settings.queue if queue is None else check_queue(queue)
        checker = JobChecker(batch, is_keyed=is_keyed, find_largest_budget=self._channel.find_largest_budget)
        contents = Contents()
        encoder = JobEncoder(batch, self.settings.max_spec_bytes, contents)
        required = RequiredObjects(contents, lambda: self._objects, self.settings.result_ttl_seconds)
        return Submission(self._channel, checker, encoder, required, queue=name, batch=batch)

    @property
    def _objects(self) -> Objects:
        return self._channel.objects

    def job(self, job_id: str) -> Job:
        """Find a job again, from any process; never waits.

        Raises:
            JobUnknown: there is neither a job nor an outcome of that id.
        """
        job = Job(job_id, self._channel)
        if not JOB_ID.match(job_id):
            raise JobUnknown(f"there is no job {ascii(job_id)[1:-1]}: no job has such an id", [job_id])
        if self._channel.records([job_id])[0] is None and not job.is_done:
            raise JobUnknown(f"there is no job {ascii(job_id)[1:-1]}, or it ended too long ago", [job_id])
        return job

    def batch(self, name: str) -> Batch:
        """Find a batch again, from any process; never waits.

        Raises:
            BatchUnknown: no batch has that name, or all of it ended too long ago.
        """
        batch = Batch(name, self._channel)
        if not name.isprintable() or not batch.counts.total:
            raise BatchUnknown(f"there is no batch {ascii(name)[1:-1]}, or it ended too long ago")
        return batch

    @property
    def dead(self) -> DeadLetters:
        """The dead letters: jobs that have no attempt left."""
        return DeadLetters(self._channel)

    def record(self, job_id: str) -> JobRecord | None:
        """Return a job's record (batch, line, time of submit) and current state, None if it has expired."""
        return self._channel.records([job_id])[0]

    def explain_no_claims(self) -> str:
        """Return why workers claim no job now, as far as Redis's memory is the reason; else empty."""
        return self._channel.explain_no_claims()

    def as_completed(self, jobs: Iterable[Job | str], timeout: float | None = None) -> OutcomeStream:
        """Return the outcomes of `jobs` (handles or ids) as they end, for ``for`` and ``async for``; each job once.

        A job that was run again comes with the outcome of its newest run. For many handles of one
        batch, as `submit_many` returns them, it reads that batch's stream of ended jobs; for others
        it subscribes to the notice of each job.
        """
        handles = list(jobs)
        batches = {job.batch if isinstance(job, Job) else None for job in handles}
        ids = [job.id if isinstance(job, Job) else job for job in handles]
        return OutcomeStream(self._channel, ids, timeout, batch=batches.pop() if len(batches) == 1 else None)

    def execute(
        self, code: str, language: str = "python", profile: str = "", *, config: Config | None = None, **fields: Any
    ) -> ExecuteResult:
        """Run `code` and wait: ``Backend.Execute`` over the fleet.

        `fields` are those of `ExecuteRequest`: ``timeout``, ``limits``, ``metadata``. `config`
        chooses image and network.

        Raises:
            SpecInvalid: the request is faulty.
            SandboxError: the class of every other code but ``OK`` and ``EXIT_NONZERO``.
            FleetUnavailable: Redis is out of reach.
        """
        try:
            request = ExecuteRequest.model_validate({"code": code, "language": language, "profile": profile, **fields})
        except ValidationError as error:
            raise_faults(error, ExecuteRequest)
        return Backend(config or Config(), client=FleetRunner(self)).execute(request)


def _add_jobs(error: FleetError | RequestError, jobs: Iterable[Job]) -> None:
    error.job_ids = tuple(dict.fromkeys([*(job.id for job in jobs), *error.job_ids]))
