"""What can go wrong between a producer and the fleet; how a job ended is `sandfleet_config.errors`' business.

FleetError
├── FleetUnavailable   (also a ConnectionError)
├── ResultTimeout      (also a TimeoutError)
├── QueueFull
├── JobUnknown         (also a LookupError)
│   └── BatchUnknown
├── JobExists          (also a ValueError)
└── IdempotencyConflict (also a ValueError)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_NAMED_JOBS = 3


class FleetError(Exception):
    """Trouble between this process and the fleet; it says nothing about how a job ends. `job_ids` are the jobs concerned."""

    def __init__(self, message: str, job_ids: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.job_ids = tuple(job_ids)

    def __str__(self) -> str:
        """Return the message alone."""
        return self.message


class FleetUnavailable(FleetError, ConnectionError):
    """Redis cannot be reached or refuses: start it, or set ``SANDFLEET_REDIS_URL``.

    `job_ids` are jobs that may have been queued all the same.
    """


class ResultTimeout(FleetError, TimeoutError):
    """The wait is over, the jobs in `job_ids` are not: they go on; wait again, or cancel them."""


class JobUnknown(FleetError, LookupError):
    """The fleet has neither a job nor an outcome of that id: never submitted, or ended longer ago than outcomes are kept."""


class BatchUnknown(JobUnknown):
    """The fleet has no batch of that name: never submitted, or all of it ended longer ago than outcomes are kept."""


class QueueFull(FleetError):
    """The queue holds ``max_queued`` jobs, or Redis is nearly full: wait until workers have taken some, then submit again.

    `job_ids` are the jobs of the same call that had been queued before.
    """


class IdempotencyConflict(FleetError, ValueError):
    """`key` stands for the job `job_id`, which was submitted with another spec: a new job needs a new key.

    `job_ids` are the jobs of the same call that are queued.
    """

    def __init__(self, message: str, key: str, job_id: str, job_ids: Iterable[str] = ()) -> None:
        super().__init__(message, job_ids)
        self.key = key
        self.job_id = job_id


class JobExists(FleetError, ValueError):
    """Another job has that id: choose a new one, or reattach with ``fleet.job(id)``."""


def name_jobs(job_ids: Iterable[str]) -> str:
    """Return a few of `job_ids` for a message, and how many more there are."""
    ids = list(job_ids)
    shown = ", ".join(ids[:MAX_NAMED_JOBS])
    return shown if len(ids) <= MAX_NAMED_JOBS else f"{shown} and {len(ids) - MAX_NAMED_JOBS} more"
