"""The producer's door: submit jobs, find them again, collect their outcomes."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError
from sandfleet_config.execute import ExecuteRequest
from sandfleet_config.queues import JOB_ID
from sandfleet_config.settings import Settings, SettingsInvalid, check_environment
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import JobRequest, encode_job, new_spec, raise_faults, spec_sha256

from sandfleet.backend import Backend, Config
from sandfleet.channel import JobRecord, Ticket
from sandfleet.collect import OutcomeStream
from sandfleet.errors import FleetUnavailable, JobUnknown
from sandfleet.job import Job
from sandfleet.runner import FleetRunner

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from sandfleet_config.execute import ExecuteResult

    from sandfleet.channel import Channel


def read_settings() -> Settings:
    """Read ``SANDFLEET_*`` from the environment.

    Raises:
        SettingsInvalid: a variable no setting reads, or a value that is none; every fault named, no value repeated.
    """
    check_environment()
    try:
        return Settings()
    except ValidationError as error:
        faults = [f"SANDFLEET_{'__'.join(map(str, item['loc'])).upper()}: {item['msg']}" for item in error.errors()]
        raise SettingsInvalid("; ".join(faults)) from None


class Fleet:
    """A fleet of workers behind one Redis. Safe for threads, and usable in a forked child; a context manager.

    Nothing is connected before the first use. `settings` default to the environment's ``SANDFLEET_*``.
    """

    def __init__(self, settings: Settings | None = None, *, channel: Channel | None = None) -> None:
        self.settings = read_settings() if settings is None else settings
        if channel is None:
            from sandfleet.publish import RedisChannel

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
        self, spec: SandboxSpec | Mapping[str, Any], *, batch: str | None = None, job_id: str | None = None
    ) -> Job:
        """Queue one job and return its handle; the job runs whether or not anybody waits.

        Raises:
            SpecInvalid: the spec (a dict is taken too) is faulty; every fault is in ``errors``. Nothing was queued.
            SecurityViolation: it asks for what nobody may have. Nothing was queued.
            SpecTooLarge: it is over ``max_spec_bytes``. Nothing was queued.
            JobExists: `job_id` was given and another job has it.
            FleetUnavailable: Redis is out of reach; ``job_ids`` names the job if it may have been queued all the same.
        """
        return self._publish(self._new_ticket(spec, batch, job_id))

    def submit_many(self, specs: Iterable[SandboxSpec | Mapping[str, Any]], *, batch: str | None = None) -> list[Job]:
        """Queue many jobs; all are checked before the first is queued.

        Raises:
            SandboxError: as `submit`; nothing was queued.
            FleetUnavailable: Redis went away; ``job_ids`` are the jobs that were, or may have been, queued.
        """
        jobs: list[Job] = []
        for ticket in [self._new_ticket(spec, batch, None) for spec in specs]:
            try:
                jobs.append(self._publish(ticket))
            except FleetUnavailable as error:
                raise FleetUnavailable(error.message, [*(job.id for job in jobs), *error.job_ids]) from error
        return jobs

    def job(self, job_id: str) -> Job:
        """Find a job again, from any process; never waits.

        Raises:
            JobUnknown: there is neither a job nor an outcome of that id.
        """
        job = Job(job_id, self._channel)
        if self._channel.records([job_id])[0] is None and not job.is_done:
            raise JobUnknown(f"there is no job {ascii(job_id)[1:-1]}, or it ended too long ago", [job_id])
        return job

    def record(self, job_id: str) -> JobRecord | None:
        """Return what was left at submit (batch, line, time), None where it is gone."""
        return self._channel.records([job_id])[0]

    def as_completed(self, jobs: Iterable[Job | str], timeout: float | None = None) -> OutcomeStream:
        """Return the outcomes of `jobs` (handles or ids) as they end, for ``for`` and ``async for``; each job once."""
        ids = [job.id if isinstance(job, Job) else job for job in jobs]
        return OutcomeStream(self._channel, ids, timeout)

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
            raise_faults(error)
        return Backend(config or Config(), client=FleetRunner(self)).execute(request)

    def _new_ticket(self, spec: SandboxSpec | Mapping[str, Any], batch: str | None, job_id: str | None) -> Ticket:
        if job_id is not None and not JOB_ID.match(job_id):
            raise ValueError("a job id is 1 to 128 of A-Z a-z 0-9 . _ : @ - and starts with a letter or a digit")
        parsed = spec if isinstance(spec, SandboxSpec) else new_spec(spec)
        try:
            request = JobRequest(batch=batch, spec=parsed)
        except ValidationError as error:
            raise_faults(error)
        text = encode_job(request, self.settings.max_spec_bytes)
        record = JobRecord(batch=batch, line=parsed.to_line(), submitted=time.time(), spec_sha256=spec_sha256(parsed))
        return Ticket(job_id or str(uuid.uuid4()), request, text, record)

    def _publish(self, ticket: Ticket) -> Job:
        self._channel.publish(ticket)
        return Job(ticket.job_id, self._channel)
