"""The names both sides use in Redis and in Celery."""

from __future__ import annotations

import re

TASK_NAME = "sandfleet.run"
DEFAULT_QUEUE = "sandfleet"
KEY_PREFIX = "sandfleet:"
"""Before every key in Redis: Celery's own by its ``global_keyprefix``, ours by the functions below."""

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\Z")
"""What a job may be called; a message with another id can have no outcome and is dropped."""

SUBMITTED_HEADER = "sandfleet-submitted"
"""Message header with the time of submission, seconds since the epoch; the outcome's ``timing.queued`` counts from it."""

CANCEL_TTL_SECONDS = 8 * 86400
"""A cancel outlives any time a job may wait in the queue (1 day) or be kept as a dead letter (7 days)."""


def cancel_key(job_id: str) -> str:
    """Return the key whose existence cancels a job before its start."""
    return f"{KEY_PREFIX}cancel:{job_id}"


def job_key(job_id: str) -> str:
    """Return the key of the record a producer leaves at submit."""
    return f"{KEY_PREFIX}job:{job_id}"


def result_key(job_id: str) -> str:
    """Return the key of Celery's result record, prefix included."""
    return f"{KEY_PREFIX}celery-task-meta-{job_id}"
