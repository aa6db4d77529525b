"""Read the records of jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from pydantic import ValidationError
from sandfleet_config.queues import job_key

from sandfleet.channel.records import JobRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet.channel.connection import Connections

MILLI: Final = 1000
RECORD_FIELDS: Final = ("record", "state", "queue", "run", "why", "why_at", "relisted")
END_FIELDS: Final = (*RECORD_FIELDS, "attempts", "needs", "submitted")
"""The fields that the end of a queued job needs."""


def read_record_fields(
    connections: Connections, job_ids: Sequence[str], fields: Sequence[str] = RECORD_FIELDS
) -> list[list[bytes | None]]:
    """Return the values of `fields` for each job, in order."""
    with connections.guard():
        pipe = connections.new_pipe()
        for job_id in job_ids:
            pipe.hmget(job_key(job_id), *fields)
        found: list[list[bytes | None]] = pipe.execute()
    return found


def parse_record(values: Sequence[bytes | None]) -> JobRecord | None:
    """Parse the values of `RECORD_FIELDS`; None if there is no such job.

    A stock producer's job has a state, from its first claim on, and no record.
    """
    found = dict(zip(RECORD_FIELDS, values, strict=True))
    state, run, why, why_at = found["state"], found["run"], found["why"], found["why_at"]
    if state is None:
        return None
    try:
        record = JobRecord.model_validate_json(found["record"] or b"{}")
    except ValidationError:
        record = JobRecord()  # it cannot be read, but the job is known
    number = int(run) if run and run.isdigit() else 1
    known: dict[str, object] = {"state": state.decode(), "queue": (found["queue"] or b"").decode(), "run": number}
    known["is_relisted"] = found["relisted"] is not None
    if why and state == b"queued":
        at = float(why_at) / MILLI if why_at and why_at.isdigit() else 0.0
        known |= {"why": why.decode(errors="replace"), "why_at": at}
    return record.model_copy(update=known)
