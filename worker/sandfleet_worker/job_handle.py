"""One running job as its threads see it: its limits, and its cancellation."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field

from sandfleet_worker.sandbox.process.cancellation import Cancellation


@dataclass(eq=False)
class JobHandle:
    """One job in the pool.

    Celery gets `number` as its process id; limits are the message's, in seconds.
    """

    number: int
    job_id: str
    claim_id: str = ""
    soft_seconds: float | None = None
    hard_seconds: float | None = None
    cancellation: Cancellation = field(default_factory=Cancellation)

    @property
    def is_withdrawn(self) -> bool:
        """Whether the worker took the job back before it was cancelled.

        It goes back to its queue without an outcome.
        """
        return self.cancellation.is_withdrawn


_current: ContextVar[JobHandle] = ContextVar("sandfleet_job")


def current_job() -> JobHandle:
    """Return the handle of the job that the calling pool thread runs."""
    return _current.get()


def set_current_job(job: JobHandle) -> None:
    """Make `job` the one that the calling pool thread runs."""
    _current.set(job)
