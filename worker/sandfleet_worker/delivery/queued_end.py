"""The end of a job that no worker has, from its record: outcome, and facts for the history."""

from __future__ import annotations

import json
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError
from sandfleet_config.outcome import Outcome, Timing
from sandfleet_config.run_summary import RunFacts, read_facts

from sandfleet_worker.delivery.claim import parse_attempts, parse_number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.codes import ErrorCode

FIELDS: Final = ("record", "batch", "run", "attempts", "needs", "queue", "submitted")
"""The fields of a record that `new_queued_end` takes, in this order."""


def new_queued_end(
    code: ErrorCode, job_id: str, message: str, values: Sequence[bytes | None], now: float | None = None
) -> tuple[Outcome, RunFacts]:
    """Return how a queued job ends, from the `FIELDS` of its record; `now` is unix time."""
    record, batch, run, attempts, needs, queue, submitted = values
    told = _parse_object(record)
    facts = read_facts(record, needs, queue, submitted)
    new = partial(
        Outcome.of,
        code,
        job_id,
        message,
        batch=batch.decode(errors="replace") if batch else None,
        run=parse_number(run or b"") or 1,
        attempts=parse_attempts(attempts or b""),
        timing=Timing.of(queued=_count_queued(facts.submitted, time.time() if now is None else now)),
    )
    try:
        return new(labels=told.get("labels") or {}, spec_sha256=told.get("spec_sha256") or ""), facts
    except ValidationError:  # a forged record
        return new(), facts


def _count_queued(submitted: float, now: float) -> float | None:
    """Return the seconds since `submitted`; None if it is not known."""
    return max(0.0, now - submitted) if submitted else None


def _parse_object(raw: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(raw or b"{}")
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
