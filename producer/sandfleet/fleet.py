"""The producer's door: submit jobs, find them again, collect their outcomes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError
from sandfleet_config.environment import check_environment, word_settings_faults
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
from sandfleet.job import Job
from sandfleet.submit.encode import Desk
from sandfleet.submit.submission import Submission

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Mapping
    from types import TracebackType

    from sandfleet_config.execute import ExecuteResult
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.records import JobRecord


def read_settings() -> Settings:
    """Read ``SANDFLEET_*`` from the environment.

    Raises:
        SettingsInvalid: a variable no setting reads, or a value that is none; every fault named, no value repeated.
    """
    check_environment()
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsInvalid(word_settings_faults(error)) from None


class Fleet:
    """A fleet of workers behind one Redis. Safe for threads, and usable in a forked child; for ``with`` and ``async with``.

    Nothing is connected before the first use. `settings` default to the environment's ``SANDFLEET_*``.
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
        """Close the connections; jobs go on, and a later use connects anew."""
        self._channel.close()

    def ping(self) -> None:
        """Return if Redis answers.

        Raises:
            FleetUnavailable: it does not, and why.
        """
        self._channel.ping()

    def has_workers(self, timeout_seconds: float = 1.0) -> bool:
        """Whether any worker answers within `timeout_seconds`; at once if one does."""
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

        With an ``idempotency_key`` in the spec, a job that was submitted before with the same key and spec is returned as it is.
        `queue` defaults to the settings' queue; queues take turns.

        Raises:
            SpecInvalid: the spec (a dict is taken too) is faulty; every fault is in ``errors``. Nothing was queued. So is one
                that asks for more memory than any live host has for its jobs.
            SecurityViolation: it asks for what nobody may have. Nothing was queued.
            SpecTooLarge: it is over ``max_spec_bytes``. Nothing was queued.
            IdempotencyConflict: its key stands for a job with another spec.
            JobExists: `job_id` was given and another job has it.
            QueueFull: there is no room in the queue, or in Redis. Nothing was queued.
            FleetUnavailable: Redis is out of reach; ``job_ids`` names the job if it may have been queued all the same.
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
        """Queue many jobs, a few hundred in one step; return their handles in the order of `specs`.

        A list or tuple is checked as a whole before the first is queued; other iterables are read, checked and queued as they
        come. `idempotent` gives spec number n of `batch` the key ``<batch>/<n>`` where it has none: a producer that died runs the
        same call again, and what is queued already is found, not queued again. `on_progress` is called with how many are queued.

        Raises:
            SpecInvalid: specs are faulty; ``errors`` names them (``specs[17].command``), up to 50 faults. Of a list nothing was
                queued. An iterator stops at the first: ``job_ids`` are the jobs of the specs before it, which are queued.
            SecurityViolation: likewise, where one of them asks for what nobody may have; this outranks the other faults.
            SpecTooLarge: likewise, where specs are too large and nothing else is wrong.
            QueueFull: there is no room; of a list, nothing was queued.
            IdempotencyConflict, FleetUnavailable: as `submit`. ``job_ids`` of these are the jobs that are, or may be, queued.
            ValueError: `idempotent` without a batch.
        """
        jobs: list[Job] = []
        try:
            for portion in self.submit_portions(specs, batch=batch, queue=queue, idempotent=idempotent):
                jobs += portion
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
        """Do what `submit_many` does and leave the event loop free; `specs` may be asynchronous too.

        Such a source, and `on_progress`, run in the event loop, a plain iterator in other threads. A cancelled call may still
        queue the portion that is under way.
        """
        jobs: list[Job] = []
        try:
            async for portion in self._new_submission(batch, queue, is_keyed=idempotent).submit_async(specs):
                jobs += portion
                if on_progress is not None:
                    on_progress(len(jobs))
        except (FleetError, RequestError) as error:
            _add_jobs(error, jobs)
            raise
        return jobs

    def submit_portions(
        self,
        specs: Iterable[SandboxSpec | Mapping[str, Any]],
        *,
        batch: str | None = None,
        queue: str | None = None,
        idempotent: bool = False,
    ) -> Iterator[list[Job]]:
        """Do what `submit_many` does, and yield the handles of each portion once it is queued: nothing grows with the batch.

        The specs of the next portion are read before that.
        """
        return self._new_submission(batch, queue, is_keyed=idempotent).submit(specs)

    def _new_submission(self, batch: str | None, queue: str | None, *, is_keyed: bool = False) -> Submission:
        name = self.settings.queue if queue is None else check_queue(queue)
        desk = Desk(
            batch,
            self.settings.max_spec_bytes,
            is_keyed=is_keyed,
            find_largest_budget=self._channel.find_largest_budget,
        )
        return Submission(self._channel, desk, name)

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
        """The jobs that used up their attempts: look at them, queue them again, drop them."""
        return DeadLetters(self._channel)

    def record(self, job_id: str) -> JobRecord | None:
        """Return what was left at submit (batch, line, time) and the state of now, None where it is gone."""
        return self._channel.records([job_id])[0]

    def explain_no_claims(self) -> str:
        """Say why workers claim no job at all now, as far as Redis's memory is the reason; empty where it is not."""
        return self._channel.explain_no_claims()

    def as_completed(self, jobs: Iterable[Job | str], timeout: float | None = None) -> OutcomeStream:
        """Return the outcomes of `jobs` (handles or ids) as they end, for ``for`` and ``async for``; each job once.

        While it waits for many handles of one batch, as `submit_many` returns them, it follows the stream of that batch's ends;
        of other jobs it listens to each one's notice. Of a job that was run again it is the newest run's outcome.
        """
        handles = list(jobs)
        batches = {job.batch if isinstance(job, Job) else None for job in handles}
        ids = [job.id if isinstance(job, Job) else job for job in handles]
        return OutcomeStream(self._channel, ids, timeout, batch=batches.pop() if len(batches) == 1 else None)

    def execute(
        self, code: str, language: str = "python", profile: str = "", *, config: Config | None = None, **fields: Any
    ) -> ExecuteResult:
        """Run `code` and wait: the seed's ``Backend.Execute`` over the fleet.

        `fields` are those of `ExecuteRequest`: ``timeout``, ``limits``, ``metadata``. `config` chooses image and network.

        Raises:
            SandboxError: every code but ``OK`` and ``EXIT_NONZERO``, as its class; a faulty request is `SpecInvalid`.
            FleetUnavailable: Redis is out of reach.
        """
        try:
            request = ExecuteRequest.model_validate({"code": code, "language": language, "profile": profile, **fields})
        except ValidationError as error:
            raise_faults(error, ExecuteRequest)
        return Backend(config or Config(), client=FleetRunner(self)).execute(request)


def _add_jobs(error: FleetError | RequestError, jobs: Iterable[Job]) -> None:
    error.job_ids = tuple(dict.fromkeys([*(job.id for job in jobs), *error.job_ids]))
