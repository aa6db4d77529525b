"""Values that cross the channel: jobs on their way out, what Redis tells of them, and dead letters."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

from pydantic import Field
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Attempt, Record
from sandfleet_config.spec import SandboxSpec

_encode: Final = json.JSONEncoder().encode


class JobRecord(Record):
    """What a producer leaves behind at submit; `submitted` is unix time. It holds no env, no stdin and no output."""

    batch: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    line: str = ""
    submitted: float = 0.0
    spec_sha256: str = ""
    queue: str = ""
    run: int = 1
    state: str = ""
    """``queued``, ``waiting`` (a worker has it, its program has not started), ``running`` or ``ended``,
    at the time of the look; not part of what was left."""
    why: str = ""
    """Why a queued job waits, as the host that looked at it last says: "needs 1 GiB of memory, host-07 has 600 MiB free"."""
    why_at: float = 0.0
    """When that was, unix time."""


class AnswerKind(StrEnum):
    """What became of a ticket: queued, or found to be queued before, or in conflict with what is there.

    ``elsewhere`` was queued before, in another batch.
    """

    NEW = "new"
    SAME = "same"
    ELSEWHERE = "elsewhere"
    CONFLICT = "conflict"
    EXISTS = "exists"


class Answer(NamedTuple):
    """What became of a ticket, and the job that stands for it now."""

    kind: AnswerKind
    job_id: str


class CancelState(StrEnum):
    """What a cancel did: ended a job that waited, asked for the end of one that may run, or came too late."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    ENDED = "ended"


class Look(NamedTuple):
    """What a look at awaited jobs showed: those nobody knows, how many it ended, seconds until another expires (None: never)."""

    gone: list[str]
    ended: int
    next_expiry: float | None


class BatchCounts(NamedTuple):
    """How many jobs a batch has, and how many of them have ended."""

    total: int
    done: int


class BatchState(NamedTuple):
    """How far a batch is: `total` jobs, `ended` of them, `codes` with how many ended so, whether all are submitted.

    `ends` are job ids and runs behind the place that was asked for, `place` is that of the last of them, and `imported` says how
    many ends were found that workers of an older release have recorded.
    """

    total: int = 0
    ended: int = 0
    codes: Mapping[str, int] = MappingProxyType({})
    is_sealed: bool = False
    ends: Sequence[tuple[str, int]] = ()
    place: str = "0-0"
    imported: int = 0


class RunState(StrEnum):
    """Result of asking for another run of a job.

    ``queued``: the next run is queued. ``later``: another run has begun since, or this one has not ended. The others say why
    there is nothing to run.
    """

    QUEUED = "queued"
    LATER = "later"
    NO_MESSAGE = "no message"
    UNREADABLE = "unreadable"
    UNUSABLE = "unusable"
    UNKNOWN = "unknown"


class DeadLetter(Record):
    """One dead letter; `at` is unix time. It shows no env, stdin or output; `garbage` are the escaped bytes of what is no job."""

    job_id: str
    code: ErrorCode | None = None
    reason: str = ""
    at: float = 0.0
    queue: str = ""
    batch: str | None = None
    line: str = ""
    attempts: tuple[Attempt, ...] = ()
    garbage: str = ""
    run: int = 1


class Ticket(NamedTuple):
    """A job ready to be queued: `text` is its encoded request, `fingerprint` what its key or id stands for.

    `key` is its idempotency key, which need not stand in `spec`. `submitted` is unix time. `needs` is JSON for the record.
    """

    job_id: str
    spec: SandboxSpec
    batch: str | None
    key: str
    text: str
    spec_hash: str
    fingerprint: str
    tag: str
    line: str
    submitted: float
    needs: str

    @property
    def record(self) -> JobRecord:
        """What the producer leaves behind."""
        return new_record(self.spec, self.batch, self.spec_hash, self.submitted)

    def encode_record(self) -> str:
        """Return `record` as JSON, put together by hand: its model takes four times as long, and is in every submit."""
        named = f'"batch":{_encode(self.batch)},' if self.batch is not None else ""
        labels = f'"labels":{_encode(self.spec.labels)},' if self.spec.labels else ""
        return f'{{{named}{labels}"line":{_encode(self.line)},"submitted":{self.submitted!r},"spec_sha256":"{self.spec_hash}"}}'


def new_record(spec: SandboxSpec, batch: str | None, spec_hash: str, submitted: float) -> JobRecord:
    """Return what a producer leaves behind of a job."""
    # Nothing in it needs a check a second time.
    return JobRecord.model_construct(
        batch=batch, labels=spec.labels, line=spec.to_line(), submitted=submitted, spec_sha256=spec_hash
    )
