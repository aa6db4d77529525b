"""Outcomes that a producer records: of jobs that were cancelled, or that expired, in the queue."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError
from sandfleet_config.codes import ErrorCode
from sandfleet_config.messages import CANCELLED_QUEUED, describe_expiry
from sandfleet_config.new_codes import replace_new_code
from sandfleet_config.outcome import Attempt, Outcome, Timing

if TYPE_CHECKING:
    from sandfleet.channel.records import JobRecord

_attempts = TypeAdapter(tuple[Attempt, ...])


def new_ending(code: ErrorCode, job_id: str, record: JobRecord, attempts: tuple[Attempt, ...]) -> Outcome:
    """Return the outcome ``CANCELLED`` or ``EXPIRED`` of a queued job.

    `attempts` are its earlier ones.
    """
    return Outcome.of(
        code,
        job_id,
        describe_expiry(record.why) if code is ErrorCode.EXPIRED else CANCELLED_QUEUED,
        batch=record.batch,
        labels=record.labels,
        spec_sha256=record.spec_sha256,
        attempts=attempts,
        run=record.run,
        timing=Timing.of(queued=max(0.0, time.time() - record.submitted) if record.submitted else None),
    )


def parse_attempts(raw: bytes | str | None) -> tuple[Attempt, ...]:
    """Parse the attempts in a job's record; empty if they cannot be read."""
    if not raw:
        return ()
    try:
        items: Any = json.loads(raw)
        return _attempts.validate_python(
            [replace_new_code({**item, "code": item.get("code") or None}) for item in items]
        )
    except (ValidationError, ValueError, TypeError, AttributeError):
        return ()
