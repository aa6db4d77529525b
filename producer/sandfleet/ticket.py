"""From a spec to a job that is ready to be queued: checked, encoded, named."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from sandfleet_config.queues import JOB_ID
from sandfleet_config.spec import MAX_KEY_CHARS, SandboxSpec
from sandfleet_config.wire import JobRequest, encode_job, new_spec, raise_faults, request_sha256, spec_sha256

from sandfleet.channel import JobRecord, Ticket

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

CHUNK_JOBS = 256
CHUNK_BYTES = 4 << 20


def new_ticket(
    spec: SandboxSpec | Mapping[str, Any],
    *,
    max_spec_bytes: int,
    batch: str | None = None,
    job_id: str | None = None,
    key: str | None = None,
) -> Ticket:
    """Check and encode one job; `key` is its idempotency key where the spec has none of its own.

    Raises:
        SandboxError: `SpecInvalid`, `SpecTooLarge` or `SecurityViolation`, with every fault.
        ValueError: no job may have that id.
    """
    if job_id is not None and not JOB_ID.match(job_id):
        raise ValueError("a job id is 1 to 128 of A-Z a-z 0-9 . _ : @ - and starts with a letter or a digit")
    parsed = spec if isinstance(spec, SandboxSpec) else new_spec(spec)
    if key and not parsed.idempotency_key:
        parsed = _with_key(parsed, key)
    try:
        request = JobRequest(batch=batch, spec=parsed)
    except ValidationError as error:
        raise_faults(error)
    text = encode_job(request, max_spec_bytes)
    spec_hash = spec_sha256(parsed)
    tag = str(uuid.uuid4())
    # Without a key nothing but this very ticket is the same job: a repeated call finds it by its id, another's id is taken.
    fingerprint = request_sha256(parsed, spec_hash) if parsed.idempotency_key else tag
    return Ticket(job_id or tag, request, text, new_record(request, spec_hash), fingerprint, tag)


def _with_key(spec: SandboxSpec, key: str) -> SandboxSpec:
    if len(key) <= MAX_KEY_CHARS and key.isprintable():
        return spec.model_copy(update={"idempotency_key": key})
    return new_spec({**dict(spec), "idempotency_key": key})  # refuses it in its own words


def new_record(request: JobRequest, spec_hash: str | None = None) -> JobRecord:
    """Return what a producer leaves behind of a job."""
    spec = request.spec
    # Nothing in it needs a check a second time.
    return JobRecord.model_construct(
        batch=request.batch,
        labels=spec.labels,
        line=spec.to_line(),
        submitted=time.time(),
        spec_sha256=spec_hash or spec_sha256(spec),
    )


def chunk_tickets(tickets: Iterable[Ticket]) -> Iterator[list[Ticket]]:
    """Yield `tickets` in portions for one round trip each, bounded in number and in bytes."""
    chunk: list[Ticket] = []
    size = 0
    for ticket in tickets:
        chunk.append(ticket)
        size += len(ticket.text)
        if len(chunk) >= CHUNK_JOBS or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
