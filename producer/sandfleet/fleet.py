"""The producer's door: submit jobs, find them again, collect their outcomes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, assert_never

from pydantic import ValidationError
from sandfleet_config.execute import ExecuteRequest
from sandfleet_config.queues import check_queue
from sandfleet_config.settings import Settings, SettingsInvalid, check_environment
from sandfleet_config.wire import raise_faults

from sandfleet.backend import Backend, Config
from sandfleet.batch import Batch
from sandfleet.channel import AnswerKind
from sandfleet.collect import OutcomeStream
from sandfleet.dead import DeadLetters
from sandfleet.errors import BatchUnknown, FleetError, IdempotencyConflict, JobExists, JobUnknown
from sandfleet.job import Job
from sandfleet.runner import FleetRunner
from sandfleet.ticket import chunk_tickets, new_ticket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from types import TracebackType

    from sandfleet_config.execute import ExecuteResult
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel import Channel, JobRecord, Ticket


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
            SpecInvalid: the spec (a dict is taken too) is faulty; every fault is in ``errors``. Nothing was queued.
            SecurityViolation: it asks for what nobody may have. Nothing was queued.
            SpecTooLarge: it is over ``max_spec_bytes``. Nothing was queued.
            IdempotencyConflict: its key stands for a job with another spec.
            JobExists: `job_id` was given and another job has it.
            QueueFull: there is no room in the queue, or in Redis. Nothing was queued.
            FleetUnavailable: Redis is out of reach; ``job_ids`` names the job if it may have been queued all the same.
        """
        ticket = new_ticket(spec, max_spec_bytes=self.settings.max_spec_bytes, batch=batch, job_id=job_id)
        return self._publish([ticket], self._check_queue(queue), 1)[0]

    def submit_many(
        self,
        specs: Iterable[SandboxSpec | Mapping[str, Any]],
        *,
        batch: str | None = None,
        queue: str | None = None,
        idempotent: bool = False,
    ) -> list[Job]:
        """Queue many jobs, a few hundred in one step; return their handles in the order of `specs`.

        All specs of a list or tuple are checked before the first is queued. Those of any other iterable are read, checked and
        queued in portions, so that it may be longer than memory: a faulty one stops it, and those before it are queued.

        `idempotent` gives each spec without a key of its own the key ``<batch>/<its number from 0>``: after a crash, or any
        error, the same call with the same specs in the same order queues what is missing, and returns the handles of all.

        Raises:
            SandboxError: as `submit`.
            FleetError: as `submit`; ``job_ids`` are the jobs that were, or may have been, queued.
        """
        jobs: list[Job] = []
        try:
            for portion in self.submit_portions(specs, batch=batch, queue=queue, idempotent=idempotent):
                jobs += portion
        except FleetError as error:
            error.job_ids = tuple(dict.fromkeys([*(job.id for job in jobs), *error.job_ids]))
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
        """Do what `submit_many` does, and yield the handles of each portion once it is queued: nothing grows with the batch."""
        if idempotent and not batch:
            raise ValueError("an idempotent submit needs the name of a batch: its jobs' keys begin with it")
        name = self._check_queue(queue)
        tickets = (
            new_ticket(
                spec,
                max_spec_bytes=self.settings.max_spec_bytes,
                batch=batch,
                key=f"{batch}/{index}" if idempotent else None,
            )
            for index, spec in enumerate(specs)
        )
        if isinstance(specs, list | tuple):
            ready = list(tickets)
            return self._publish_portions(ready, name, len(ready))
        return self._publish_portions(tickets, name, 0)

    def _publish_portions(self, tickets: Iterable[Ticket], queue: str, wanted: int) -> Iterator[list[Job]]:
        for chunk in chunk_tickets(tickets):
            yield self._publish(chunk, queue, max(wanted, len(chunk)))
            wanted -= len(chunk)

    def job(self, job_id: str) -> Job:
        """Find a job again, from any process; never waits.

        Raises:
            JobUnknown: there is neither a job nor an outcome of that id.
        """
        job = Job(job_id, self._channel)
        if self._channel.records([job_id])[0] is None and not job.is_done:
            raise JobUnknown(f"there is no job {ascii(job_id)[1:-1]}, or it ended too long ago", [job_id])
        return job

    def batch(self, name: str) -> Batch:
        """Find a batch again, from any process; never waits.

        Raises:
            BatchUnknown: no batch has that name, or all of it ended too long ago.
        """
        batch = Batch(name, self._channel)
        if not batch.counts.total:
            raise BatchUnknown(f"there is no batch {ascii(name)[1:-1]}, or it ended too long ago")
        return batch

    @property
    def dead(self) -> DeadLetters:
        """The jobs that used up their attempts: look at them, queue them again, drop them."""
        return DeadLetters(self._channel)

    def record(self, job_id: str) -> JobRecord | None:
        """Return what was left at submit (batch, line, time) and the state of now, None where it is gone."""
        return self._channel.records([job_id])[0]

    def as_completed(self, jobs: Iterable[Job | str], timeout: float | None = None) -> OutcomeStream:
        """Return the outcomes of `jobs` (handles or ids) as they end, for ``for`` and ``async for``; each job once.

        While it waits for many handles of one batch, as `submit_many` returns them, it follows the list of that batch's ends;
        other jobs are asked for one by one, again and again.
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
            raise_faults(error)
        return Backend(config or Config(), client=FleetRunner(self)).execute(request)

    def _check_queue(self, queue: str | None) -> str:
        return self.settings.queue if queue is None else check_queue(queue)

    def _publish(self, tickets: list[Ticket], queue: str, wanted: int) -> list[Job]:
        answers = self._channel.publish(tickets, queue, wanted)
        for ticket, answer in zip(tickets, answers, strict=True):
            match answer.kind:
                case AnswerKind.NEW | AnswerKind.SAME:
                    continue
                case AnswerKind.EXISTS:
                    raise JobExists(f"there is a job {ticket.job_id} already", [ticket.job_id])
                case AnswerKind.CONFLICT:
                    key = ticket.request.spec.idempotency_key
                    queued = [found.job_id for found in answers if found.kind in (AnswerKind.NEW, AnswerKind.SAME)]
                    raise IdempotencyConflict(
                        f"idempotency key {key!r} stands for job {answer.job_id}, which was submitted with another spec:"
                        " give the new job a key of its own, or submit it as it was",
                        key,
                        answer.job_id,
                        queued,
                    )
                case _:
                    assert_never(answer.kind)
        return [
            Job(answer.job_id, self._channel, ticket.request.batch)
            for ticket, answer in zip(tickets, answers, strict=True)
        ]
