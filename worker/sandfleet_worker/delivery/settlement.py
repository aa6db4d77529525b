"""The ways in which a worker's claim on a job ends.

`Ledger.settle` does one of them in Redis; `Intake.settle` repeats that until Redis answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandfleet_config.codes import ErrorCode
from sandfleet_config.run_summary import NO_FACTS, RunFacts
from sandfleet_config.spec import DEFAULT_QUEUE_TTL_SECONDS
from sandfleet_config.wire import encode_needs, join_needs

from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.wire import JobRequest


class WorkerStops(Exception):
    """A job that was just claimed cannot start, since its worker stops."""


@dataclass(frozen=True)
class Finish:
    """The job ends with `outcome`. `faults` are those of its request, field by field."""

    outcome: Outcome
    faults: Sequence[Mapping[str, str]] = ()
    dead_letter_reason: str = ""
    """Why the job belongs to the dead letters; empty where it does not."""
    is_drained: bool = False
    """Whether the worker's stop ended the last attempt, which is then not charged."""
    facts: RunFacts = NO_FACTS
    """Facts for the history that are not in the outcome, except the queue."""


@dataclass(frozen=True)
class Retry:
    """The attempt ends with `code` and is charged.

    The job waits for `delay_seconds`, then in its queue. The host `avoid_host` leaves it to others
    for a while. `needs` (JSON) are those of the next attempt, if its limits are raised.
    """

    code: ErrorCode
    delay_seconds: float = 0.0
    avoid_host: str = ""
    needs: str = ""


@dataclass(frozen=True)
class Release:
    """The job has started and goes back to its queue: the attempt is recorded, and not charged."""


@dataclass(frozen=True)
class GiveBack:
    """The job has not started and goes back to its queue as if it had not been claimed."""


@dataclass(frozen=True)
class PutBack:
    """This host cannot run the job, which goes back to its queue as if it had not been claimed.

    `text` says why, for people. `needs` (JSON, as a submit writes it) and `queue_ttl_seconds`
    complete the record of a stock producer's job. The host `avoid_host` leaves the job to others
    for a while.
    """

    text: str
    needs: str
    queue_ttl_seconds: float = DEFAULT_QUEUE_TTL_SECONDS
    avoid_host: str = ""

    @classmethod
    def of(cls, request: JobRequest, text: str, avoid_host: str = "", image: str = "") -> PutBack:
        """Put back the job of `request`, for the reason `text`.

        `image` is what it needs, by default its spec's.
        """
        needs = join_needs(request.contract, encode_needs(request.spec, image))
        return cls(text, needs, request.spec.queue_ttl, avoid_host)


@dataclass(frozen=True)
class FailedAttempt:
    """A fault of ours or of the host ended the attempt without an outcome, or prevented it.

    The job is tried again, or ends with `code` and `message` if no attempt is left.
    """

    code: ErrorCode
    message: str

    @classmethod
    def of(cls, failure: Exception | None) -> FailedAttempt:
        """Take code and message from the error that was raised; None if it is unknown."""
        if failure is not None and is_resource_error(failure):
            text = "the host had no descriptors, threads, memory or disk left to run the job: see the worker's log"
            return cls(ErrorCode.HOST_RESOURCES, text)
        return cls(ErrorCode.INTERNAL, "a fault in sandfleet itself: see the worker's log")


Settlement = Finish | Retry | Release | GiveBack | PutBack | FailedAttempt
