"""`DeadLetter`: a job that has no attempt left, or a message that is no job."""

from __future__ import annotations

from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Attempt
from sandfleet_config.record import Record


class DeadLetter(Record):
    """One dead letter, without env, stdin and output; `at` is unix time.

    `garbage` are the escaped bytes of a message that is no job.
    """

    job_id: str
    code: ErrorCode | None = None
    reason: str = ""
    at: float = 0.0
    queue: str = ""
    batch: str | None = None
    line: str = ""
    attempts: tuple[Attempt, ...] = ()
    garbage: str = ""
    run: int = 1
