"""`Fleet`: submit jobs, find them again, collect their outcomes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError
from sandfleet_config.environment import check_environment, describe_settings_faults
from sandfleet_config.queues import JOB_ID
from sandfleet_config.settings import Settings, SettingsInvalid
from sandfleet_config.wire import raise_faults

from sandfleet.collect.stream import OutcomeStream
from sandfleet.dead_letters import DeadLetters
from sandfleet.errors import BatchUnknown, JobUnknown
from sandfleet.files.transfers import Transfers
from sandfleet.job import Job
from sandfleet.languages.running import Programs
from sandfleet.overview.fleet_overview import FleetOverview
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from sandfleet_config.execute import ExecuteRequest, ExecuteResult

    from sandfleet.actions import Actor, Operator
    from sandfleet.batch import Batch
    from sandfleet.channel.fleet_state import FleetState
    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.records import JobRecord
    from sandfleet.execute.backend import Config
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


class Fleet(Programs, Transfers, FleetOverview):
    """A fleet of workers behind one Redis; for ``with`` and ``async with``.

    Safe for concurrent use, also in a forked child. Nothing is connected before the first use.
    `settings` default to the environment's ``SANDFLEET_*``.
    """

    def __init__(self, settings: Settings | None = None, *, channel: Channel | None = None) -> None:
        settings = read_settings() if settings is None else settings
        if channel is None:
            from sandfleet.channel.redis_channel import RedisChannel

            channel = RedisChannel(settings)
        super().__init__(settings, channel)

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
        self._close_traces()
        self._channel.close()

    def ping(self) -> None:
        """Return if Redis answers.

        Raises:
            FleetUnavailable: it does not; the message says why.
        """
        self._channel.ping()

    ping_async = in_thread(ping)

    def has_workers(self, timeout_seconds: float = 1.0) -> bool:
        """Whether any worker answers within `timeout_seconds`; returns at the first answer."""
        return self._channel.has_workers(timeout_seconds)

    has_workers_async = in_thread(has_workers)

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

    job_async = in_thread(job)

    def batch(self, name: str) -> Batch:
        """Find a batch again, from any process; never waits.

        Raises:
            BatchUnknown: no batch has that name, or all of it ended too long ago.
        """
        from sandfleet.batch import Batch  # with tables and retries: a tenth of the imports of a job

        batch = Batch(name, self._channel)
        if not name.isprintable() or not batch.counts.total:
            raise BatchUnknown(f"there is no batch {ascii(name)[1:-1]}, or it ended too long ago")
        return batch

    batch_async = in_thread(batch)

    @property
    def state(self) -> FleetState:
        """The hosts, workers and queues, and the marks on them; act by `sandfleet.actions`."""
        return self._channel.fleet_state

    def operator(self, actor: Actor) -> Operator:
        """Return the acts of an operator: cordon, drain, pause, cancel and retry by a filter.

        Raises:
            ActionRefused: the actor's role may not act.
        """
        from sandfleet.actions import Operator

        return Operator(self._channel, actor)

    @property
    def dead(self) -> DeadLetters:
        """The dead letters: jobs that have no attempt left."""
        return DeadLetters(self._channel)

    def record(self, job_id: str) -> JobRecord | None:
        """Return a job's record (batch, line, submit time) and state, None if it has expired."""
        return self._channel.records([job_id])[0]

    record_async = in_thread(record)

    def explain_no_claims(self) -> str:
        """Return why workers claim no job now, if Redis's memory is the reason; else empty."""
        return self._channel.explain_no_claims()

    def as_completed(self, jobs: Iterable[Job | str], timeout: float | None = None) -> OutcomeStream:
        """Return the outcomes of `jobs` (handles or ids) as they end; each job once.

        For ``for`` and ``async for``. A job that was run again comes with the outcome of its newest
        run. For many handles of one batch, as `submit_many` returns them, it reads that batch's
        stream of ended jobs; for others it subscribes to the notice of each job.
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
        chooses image and network. For arguments, input and cases see `run_program` and `judge`.

        Raises:
            SpecInvalid: the request is faulty.
            SandboxError: the class of every other code but ``OK`` and ``EXIT_NONZERO``.
            FleetUnavailable: Redis is out of reach.
        """
        from sandfleet.execute.backend import Backend
        from sandfleet.execute.backend import Config as BackendConfig
        from sandfleet.execute.fleet_runner import FleetRunner

        request = _new_request(code, language, profile, fields)
        return Backend(config or BackendConfig(), client=FleetRunner(self), languages=self.languages).execute(request)

    async def execute_async(
        self, code: str, language: str = "python", profile: str = "", *, config: Config | None = None, **fields: Any
    ) -> ExecuteResult:
        """Do what `execute` does without blocking the loop; cancelling the task cancels the job."""
        from sandfleet.execute.backend import Backend
        from sandfleet.execute.backend import Config as BackendConfig
        from sandfleet.execute.fleet_runner import FleetRunner

        request = _new_request(code, language, profile, fields)
        return await Backend(
            config or BackendConfig(), client=FleetRunner(self), languages=self.languages
        ).execute_async(request)


def _new_request(code: str, language: str, profile: str, fields: dict[str, Any]) -> ExecuteRequest:
    from sandfleet_config.execute import ExecuteRequest

    try:
        return ExecuteRequest.model_validate({"code": code, "language": language, "profile": profile, **fields})
    except ValidationError as error:
        raise_faults(error, ExecuteRequest)
