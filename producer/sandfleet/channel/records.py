"""Values that cross the channel: encoded jobs, answers about jobs and batches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec
from pydantic import Field
from sandfleet_config.record import Record
from sandfleet_config.spec import SandboxSpec

encode_json: Final = msgspec.json.Encoder(enc_hook=str.__str__).encode
"""Encode as JSON.

The hook makes a plain `str` of a subclass (Django's ``SafeString``), which msgspec refuses.
"""
_CODE: Final = re.compile(rb"[A-Z_]+")


class JobRecord(Record):
    """A job's record in Redis and its current state.

    Submit writes the record, without env, stdin and output. `submitted` and `why_at` are unix
    times.
    """

    batch: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    line: str = ""
    submitted: float = 0.0
    spec_sha256: str = ""
    queue: str = ""
    run: int = 1
    files: int = 0
    file_bytes: int = 0
    """The number of the spec's files, and their bytes together as far as they are known."""
    live: bool = False
    """Whether its output can be read while it runs (`output.live`)."""
    state: str = ""
    """``queued``, ``waiting`` (claimed, its program not started yet), ``running`` or ``ended``."""
    why: str = ""
    """Why a queued job waits, in the words of the last host that could not run it:
    "needs 1 GiB of memory, host-07 has 600 MiB free"."""
    why_at: float = 0.0
    is_relisted: bool = False
    """Whether it may be in its batch's list twice, since a retry found no record of it."""


class SubmitState(StrEnum):
    """Result of submitting a job.

    ``new``: queued. ``same``: it was queued before. ``elsewhere``: it was queued before, in another
    batch. ``conflict``: its idempotency key belongs to a job with another spec. ``exists``: another
    job has its id.
    """

    NEW = "new"
    SAME = "same"
    ELSEWHERE = "elsewhere"
    CONFLICT = "conflict"
    EXISTS = "exists"


class Submitted(NamedTuple):
    """Result of submitting a job, and the id of the job that its key or id belongs to now."""

    state: SubmitState
    job_id: str


class CancelState(StrEnum):
    """Result of a cancel.

    ``cancelled``: the job was queued and has ended. ``requested``: it may run, a worker ends it.
    ``ended``: it had ended before.
    """

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    ENDED = "ended"


class ExpiryCheck(NamedTuple):
    """Result of `Channel.expire_overdue`.

    `unknown` are the ids of jobs without a record, `ended` is how many jobs it ended, and
    `next_expiry` is the number of seconds until another of them expires (None: never).
    """

    unknown: list[str]
    ended: int
    next_expiry: float | None


class BatchCounts(NamedTuple):
    """How many jobs a batch has, and how many of them have ended."""

    total: int
    done: int


class NewEntries(NamedTuple):
    """New entries of a batch's stream: job ids and runs, and the cursor of the last."""

    entries: Sequence[tuple[str, int]]
    cursor: str


class BatchState(NamedTuple):
    """The state of a batch: `total` jobs, `ended` of them, `codes` counts those by code.

    `entries` are (job id, run) from the batch's stream of ended jobs after the cursor that was
    asked for; `cursor` is the id of the last of them. `imported` counts ended jobs that workers of
    an older release had recorded, and that were added to the stream by this read.
    """

    total: int = 0
    ended: int = 0
    codes: Mapping[str, int] = MappingProxyType({})
    is_sealed: bool = False
    entries: Sequence[tuple[str, int]] = ()
    cursor: str = "0-0"
    imported: int = 0


def parse_codes(fields: Mapping[bytes, bytes]) -> dict[str, int]:
    """Return the number of jobs by code; `fields` are the hash ``counts:<batch>``.

    What no release writes there is left out.
    """
    return {key.decode(): int(value) for key, value in fields.items() if _CODE.fullmatch(key) and value.isdigit()}


class RunState(StrEnum):
    """Result of asking for another run of a job.

    ``queued``: the next run is queued. ``later``: another run has begun since, or this one has not
    ended. ``no message``: neither its dead letter nor its spec is kept. ``in queue``: it ended in
    the queue, and is so far back in it that its message was not found. ``unreadable``: it holds no
    job that could run. ``unusable``: a key in Redis has a wrong type. ``unknown``: there is no such
    job.
    """

    QUEUED = "queued"
    LATER = "later"
    NO_MESSAGE = "no message"
    IN_QUEUE = "in queue"
    UNREADABLE = "unreadable"
    UNUSABLE = "unusable"
    UNKNOWN = "unknown"


class EncodedJob(msgspec.Struct, frozen=True, gc=False):
    """A job ready to be queued.

    `text` is its encoded request. `key` is its idempotency key, which `spec` need not contain.
    `fingerprint` identifies the request: a second submit with the same key or id and the same
    fingerprint is the same job. `tag` is unique to this message. `line` describes the job on one
    line. `submitted` is unix time. `needs` is the record's field `needs` (JSON). `trace` is the
    traceparent of its submit, empty without traces.
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
    trace: str = ""

    @property
    def record(self) -> JobRecord:
        """The job's record."""
        return new_record(self.spec, self.batch, self.spec_hash, self.submitted, self.line)

    def encode_record(self) -> bytes:
        """Return `record` as JSON."""
        spec = self.spec
        stored = _StoredRecord(self.batch, spec.labels, self.line, self.submitted, self.spec_hash)
        if spec.files:
            stored.files, stored.file_bytes = _count_files(spec)
        if spec.output.live:
            stored.live = True
        return encode_json(stored)


class _StoredRecord(msgspec.Struct, omit_defaults=True, gc=False):
    """The fields of `JobRecord` that are written at submit.

    Encoded five times as fast as the model.
    """

    batch: str | None = None
    labels: dict[str, str] = {}
    line: str = ""
    submitted: float = 0.0
    spec_sha256: str = ""
    files: int = 0
    file_bytes: int = 0
    live: bool = False


def _count_files(spec: SandboxSpec) -> tuple[int, int]:
    sizes = [len(file.content.to_bytes()) if file.content is not None else file.size or 0 for file in spec.files]
    return len(sizes), sum(sizes)


def new_record(
    spec: SandboxSpec, batch: str | None, spec_hash: str, submitted: float, line: str | None = None
) -> JobRecord:
    """Return the record of a job; its command has no secrets unless `line` is given."""
    # Every value was checked before.
    count, size = _count_files(spec)
    return JobRecord.model_construct(
        batch=batch,
        labels=spec.labels,
        line=spec.to_line() if line is None else line,
        submitted=submitted,
        spec_sha256=spec_hash,
        files=count,
        file_bytes=size,
        live=spec.output.live,
    )
