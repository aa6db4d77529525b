"""Jobs of `FakeChannel`, and their outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SandboxError
from sandfleet_config.outcome import Attempt, Outcome, SandboxResult, StreamOutput
from sandfleet_config.wire import decode_job

if TYPE_CHECKING:
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.records import EncodedJob, JobRecord

Ending: TypeAlias = Outcome | SandboxResult | SandboxError | None
"""How a job of a test ends; None leaves it queued, for `FakeFleet.finish` or a cancel to end."""
Handler: TypeAlias = "Callable[[SandboxSpec], Ending]"


@dataclass
class FakeJob:
    """One job; `outcome` is that of its newest run, `queued` the unix time when that was queued."""

    encoded: EncodedJob
    queue: str
    queued: float
    outcome: Outcome | None = None
    run: int = 1
    earlier: dict[int, Outcome] = field(default_factory=dict[int, Outcome])

    def new_record(self) -> JobRecord:
        """Return the job's record."""
        state = "ended" if self.outcome else "queued"
        return self.encoded.record.model_copy(update={"queue": self.queue, "state": state, "run": self.run})

    def count_seconds_left(self) -> float:
        """Return the seconds until its ``queue_ttl`` is over."""
        return self.queued + self.encoded.spec.queue_ttl - time.time()


def call_handler(handler: Handler, job: EncodedJob) -> tuple[Ending, tuple[Attempt, ...]]:
    """Call `handler` with the spec as a worker reads it, once an attempt; return the last ending."""
    spec = decode_job(job.text, len(job.text.encode())).spec
    attempts: list[Attempt] = []
    ending: Ending = None
    for _ in range(spec.max_attempts):
        started = datetime.now(UTC)
        try:
            ending = handler(spec)
        except SandboxError as error:
            ending = error
        if ending is None:
            break
        code = new_outcome(job, ending).code
        attempts.append(Attempt(host="fake", worker="fake", code=code, started=started))
        if code not in spec.retry_on:
            break
    return ending, tuple(attempts)


def new_outcome(job: EncodedJob, ending: Outcome | SandboxResult | SandboxError) -> Outcome:
    """Return the outcome of a job that ended so."""
    known: dict[str, Any] = {
        "batch": job.batch,
        "labels": job.spec.labels,
        "spec_sha256": job.spec_hash,
    }
    match ending:
        case Outcome():
            return ending.model_copy(update={"job_id": job.job_id, **known})
        case SandboxError():
            if ending.outcome is not None:
                return ending.outcome.model_copy(update={"job_id": job.job_id, **known})
            return Outcome.of(ending.code, job.job_id, ending.message, **known)
        case _:
            return Outcome.of(
                ErrorCode.EXIT_NONZERO if ending.exit_code else ErrorCode.OK,
                job.job_id,
                exit_code=ending.exit_code,
                stdout=StreamOutput.of(ending.stdout.encode()),
                stderr=StreamOutput.of(ending.stderr.encode()),
                duration=ending.duration,
                **known,
            )
