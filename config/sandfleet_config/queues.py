"""The names both sides use in Redis and in Celery."""

from __future__ import annotations

import re

TASK_NAME = "sandfleet.run"
DEFAULT_QUEUE = "sandfleet"
KEY_PREFIX = "sandfleet:"
"""Before every key in Redis: Celery's own by its ``global_keyprefix``, ours by the functions below."""

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\Z")
"""What a job may be called; a message with another id can have no outcome and is dropped."""

QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
RESERVED_QUEUES = frozenset(
    (
        "queues",
        "wake",
        "owners",
        "hosts",
        "delayed",
        "expiring",
        "dead",
        "dead_sizes",
        "dead_bytes",
        "dead_dropped",
        "duplicates",
        "malformed",
        "malformed_count",
        "unacked",
        "unacked_index",
        "unacked_mutex",
    )
)
"""Names of other keys under `KEY_PREFIX`: a queue is a key of its own name there."""

SUBMITTED_HEADER = "sandfleet-submitted"
"""Message header with the time of submission, seconds since the epoch; the outcome's ``timing.queued`` counts from it."""

RECORDED_HEADER = "sandfleet-recorded"
"""Message header of a job that has a record (`job_key`): a message whose record is gone has ended long ago and is never run."""

CANCEL_TTL_SECONDS = 8 * 86400
"""A cancel outlives any time a job may wait in the queue (`spec.MAX_QUEUE_TTL_SECONDS`) or be kept as a dead letter."""


def check_queue(name: str) -> str:
    """Return `name` if a queue may be called so.

    Raises:
        ValueError: it may not, and why.
    """
    if not QUEUE_NAME.match(name):
        msg = "a queue's name is 1 to 128 of A-Z a-z 0-9 . _ - and starts with a letter or a digit"
        raise ValueError(msg)
    if name in RESERVED_QUEUES or name.startswith(("celery-task-meta-", "celeryev")) or name.endswith(".pidbox"):
        msg = f"no queue may be called {name}: the name is taken in Redis"
        raise ValueError(msg)
    return name


def cancel_key(job_id: str) -> str:
    """Return the key whose existence cancels a job before its start."""
    return f"{KEY_PREFIX}cancel:{job_id}"


def job_key(job_id: str) -> str:
    """Return the key of the record a producer leaves at submit."""
    return f"{KEY_PREFIX}job:{job_id}"


def dead_key(job_id: str) -> str:
    """Return the key of a dead letter."""
    return f"{KEY_PREFIX}dead:{job_id}"


def batch_key(name: str) -> str:
    """Return the key of the list of a batch's job ids."""
    return f"{KEY_PREFIX}batch:{name}"


def ends_key(name: str) -> str:
    """Return the key of the stream of a batch's ends."""
    return f"{KEY_PREFIX}ends:{name}"


def run_key(job_id: str, run: int) -> str:
    """Return the key of the result record of an earlier run."""
    return f"{KEY_PREFIX}run:{run}:{job_id}"


def result_key(job_id: str) -> str:
    """Return the key of Celery's result record, prefix included."""
    return f"{KEY_PREFIX}celery-task-meta-{job_id}"
