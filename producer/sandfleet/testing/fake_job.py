"""Jobs of `FakeChannel`, and their outcomes."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeAlias

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SandboxError
from sandfleet_config.outcome import Artifact, Attempt, Outcome, SandboxResult, StreamOutput
from sandfleet_config.wire import decode_job

if TYPE_CHECKING:
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.records import EncodedJob, JobRecord
    from sandfleet.testing.fake_store import FakeStore


@dataclass(frozen=True)
class WithArtifacts:
    """A job's end, and the files that it left: bytes by path, relative to ``/work``.

    `lost` is the reason why others are not there. Only those that the spec's `artifacts` name are
    collected on a host; here all are.
    """

    ending: Outcome | SandboxResult | SandboxError
    files: Mapping[str, bytes]
    lost: str | None = None


Ended: TypeAlias = Outcome | SandboxResult | SandboxError | WithArtifacts
Ending: TypeAlias = Ended | None
"""How a job of a test ends; None leaves it queued, for `FakeFleet.finish` or a cancel to end."""
Handler: TypeAlias = "Callable[[SandboxSpec], Ending]"


@dataclass
class FakeJob:
    """One job; `outcome` is that of its newest run, `queued` and `ended` are its times (unix)."""

    encoded: EncodedJob
    queue: str
    queued: float
    outcome: Outcome | None = None
    ended: float = 0.0
    is_started: bool = False
    """Whether the handler was called."""
    failed: int | None = None
    """The round in which its batch has counted its failure."""
    run: int = 1
    earlier: dict[int, Outcome] = field(default_factory=dict[int, Outcome])

    def new_record(self) -> JobRecord:
        """Return the job's record."""
        state = "ended" if self.outcome else "queued"
        return self.encoded.record.model_copy(update={"queue": self.queue, "state": state, "run": self.run})

    def count_seconds_left(self) -> float:
        """Return the seconds until its ``queue_ttl`` is over."""
        return self.queued + self.encoded.spec.queue_ttl - time.time()


def call_handler(handler: Handler, job: EncodedJob, store: FakeStore) -> tuple[Ending, tuple[Attempt, ...]]:
    """Call `handler` with each attempt's spec, as a worker reads it; return the last ending."""
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
        code = new_outcome(job, ending, store).code
        attempts.append(Attempt(host="fake", worker="fake", code=code, started=started))
        if code not in spec.retry_on:
            raised = spec.raised({code})
            if raised is spec:
                break
            spec = raised
    return ending, tuple(attempts)


def new_outcome(job: EncodedJob, ending: Ended, store: FakeStore) -> Outcome:
    """Return the outcome of a job that ended so; its files go into `store`."""
    known: dict[str, object] = {"job_id": job.job_id, "batch": job.batch, "labels": job.spec.labels}
    if isinstance(ending, WithArtifacts):
        artifacts = tuple(_store_artifact(store, path, data) for path, data in ending.files.items())
        known |= {"artifacts": artifacts, "artifacts_lost": ending.lost}
        ending = ending.ending
    return _to_outcome(ending).model_copy(update=known | {"spec_sha256": job.spec_hash})


def _store_artifact(store: FakeStore, path: str, data: bytes) -> Artifact:
    sha256 = hashlib.sha256(data).hexdigest()
    store.put_bytes(sha256, data)
    return Artifact(path, len(data), sha256, "0644", store.name)


def _to_outcome(ending: Outcome | SandboxResult | SandboxError) -> Outcome:
    match ending:
        case Outcome():
            return ending
        case SandboxError():
            return ending.outcome or Outcome.of(ending.code, "", ending.message)
        case _:
            return Outcome.of(
                ErrorCode.EXIT_NONZERO if ending.exit_code else ErrorCode.OK,
                "",
                exit_code=ending.exit_code,
                stdout=StreamOutput.of(ending.stdout.encode()),
                stderr=StreamOutput.of(ending.stderr.encode()),
                duration=ending.duration,
            )
