"""The names of queues, keys, headers and the task, in Redis and in Celery."""

from __future__ import annotations

import re

TASK_NAME = "sandfleet.run"
DEFAULT_QUEUE = "sandfleet"
KEY_PREFIX = "sandfleet:"
"""The prefix of every key in Redis; Celery's keys get it by ``global_keyprefix``."""

JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\Z")
"""The form of a job id. A message with any other id is dropped, since it cannot have an outcome."""

QUEUE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
RESERVED_QUEUES = frozenset(
    (
        "queues",
        "batches",
        "specs",
        "specs_sum",
        "wake",
        "owners",
        "hosts",
        "delayed",
        "expiring",
        "ended_runs",
        "groups",
        "limited",
        "dead",
        "dead_sizes",
        "dead_bytes",
        "dead_dropped",
        "duplicates",
        "malformed",
        "malformed_count",
        "shared_images",
        "cordons",
        "paused",
        "audit",
        "unacked",
        "unacked_index",
        "unacked_mutex",
    )
)
"""Names of other keys under `KEY_PREFIX`, where a queue is a key of its name."""

STEP_SEPARATOR = "\x06\x16"
"""Between the name of a queue and a priority step but 0, in the key of a list: kombu's. See `list_key`."""
CORDONS = f"{KEY_PREFIX}cordons"
PAUSED = f"{KEY_PREFIX}paused"
AUDIT = f"{KEY_PREFIX}audit"
WAKE = f"{KEY_PREFIX}wake"
"""The stream on which idle workers block."""
HOST_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}\Z")
"""The form of a host's name in the settings; that of the machine itself is taken as it is."""

SUBMITTED_HEADER = "sandfleet-submitted"
"""Message header: the time of submit, s since the epoch; ``timing.queued`` counts from it."""

TRACE_HEADER = "sandfleet-traceparent"
"""Message header: the span of the submit, as W3C's traceparent; only with traces."""

RECORDED_HEADER = "sandfleet-recorded"
"""Message header of a job with a record (`job_key`).

If the record is gone, the job ended long ago and does not run.
"""

CANCEL_TTL_SECONDS = 8 * 86400
"""Longer than a job may wait (`spec.MAX_QUEUE_TTL_SECONDS`), and than a dead letter is kept."""


def check_queue(name: str) -> str:
    """Return `name` if it is a valid name of a queue.

    Raises:
        ValueError: it is not valid; the message says why.
    """
    if not QUEUE_NAME.match(name):
        msg = "a queue's name is 1 to 128 of A-Z a-z 0-9 . _ - and starts with a letter or a digit"
        raise ValueError(msg)
    if name in RESERVED_QUEUES or name.startswith(("celery-task-meta-", "celeryev")) or name.endswith(".pidbox"):
        msg = f"no queue may be called {name}: the name is taken in Redis"
        raise ValueError(msg)
    return name


def list_key(queue: str, step: int) -> str:
    """Return the key of the list with a queue's messages of one priority step."""
    return f"{KEY_PREFIX}{queue}" + (f"{STEP_SEPARATOR}{step}" if step else "")


def is_queue(name: str) -> bool:
    """Whether a queue may have this name."""
    try:
        check_queue(name)
    except ValueError:
        return False
    return True


def cancel_key(job_id: str) -> str:
    """Return the key of the cancel mark: while it exists, the job does not start."""
    return f"{KEY_PREFIX}cancel:{job_id}"


def job_key(job_id: str) -> str:
    """Return the key of a job's record, which submit writes."""
    return f"{KEY_PREFIX}job:{job_id}"


def dead_key(job_id: str) -> str:
    """Return the key of a dead letter."""
    return f"{KEY_PREFIX}dead:{job_id}"


def spec_key(job_id: str) -> str:
    """Return the key of the kept message of a job whose newest run did not end OK."""
    return f"{KEY_PREFIX}spec:{job_id}"


def batch_key(name: str) -> str:
    """Return the key of the list of a batch's job ids."""
    return f"{KEY_PREFIX}batch:{name}"


def limits_key(name: str) -> str:
    """Return the key of a batch's limits."""
    return f"{KEY_PREFIX}limits:{name}"


def ends_key(name: str) -> str:
    """Return the key of the stream of a batch's ends."""
    return f"{KEY_PREFIX}ends:{name}"


def run_key(job_id: str, run: int) -> str:
    """Return the key of the result record of an earlier run."""
    return f"{KEY_PREFIX}run:{run}:{job_id}"


def result_key(job_id: str) -> str:
    """Return the key of Celery's result record, prefix included."""
    return f"{KEY_PREFIX}celery-task-meta-{job_id}"


def status_key(owner: str) -> str:
    """Return the key of what a worker said of itself at its last beat."""
    return f"{KEY_PREFIX}status:{owner}"


def running_key(owner: str) -> str:
    """Return the key of the jobs that a worker had at its last beat."""
    return f"{KEY_PREFIX}running:{owner}"


def host_images_key(host: str) -> str:
    """Return the key of the list of a host's images."""
    return f"{KEY_PREFIX}host_images:{host}"


def host_of_owner(owner: str) -> str:
    """Return the host of a worker by the name under which it holds claims: ``host:pid:token``."""
    return owner.rsplit(":", 2)[0]
