"""Dead letters: jobs that used up their attempts, and messages that were no jobs; kept for people to look at and to try again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.errors import ErrorCode
from sandfleet_config.outcome import Attempt, Record

from sandfleet.errors import FleetError, JobUnknown
from sandfleet.job import Job

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet.channel import Channel

LISTED = 1000


class DeadLetter(Record):
    """One dead letter; `at` is unix time. It shows no env, stdin or output; `garbage` are the escaped bytes of what is no job."""

    job_id: str
    code: ErrorCode | None = None
    reason: str = ""
    at: float = 0.0
    queue: str = ""
    batch: str | None = None
    line: str = ""
    attempts: tuple[Attempt, ...] = ()
    garbage: str = ""


class DeadLetters:
    """The fleet's dead letters; kept for 7 days each, `MAX_DEAD_LETTERS` of them and `MAX_DEAD_BYTES` in all."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def list(self, limit: int = LISTED) -> list[DeadLetter]:
        """Return the newest, newest first."""
        return self._channel.dead_letters(limit)

    def count_dropped(self) -> int:
        """Return how many were dropped in the last days before their time: the newest 10,000 are kept, of 64 MiB at most."""
        return self._channel.count_dropped_dead()

    def show(self, job_id: str) -> DeadLetter:
        """Return one with its history.

        Raises:
            JobUnknown: no dead letter has that id.
        """
        letter = self._channel.dead_letter(job_id) if job_id.isprintable() else None
        if letter is None:
            raise _unknown(job_id)
        return letter

    def requeue(self, job_id: str) -> Job:
        """Queue the job again under its old id, with fresh attempts; the old outcome goes.

        Raises:
            JobUnknown: no dead letter has that id.
            FleetError: it holds no job that could run.
        """
        match self._channel.revive(job_id) if job_id.isprintable() else "unknown":
            case "queued" | "alive":
                return Job(job_id, self._channel)
            case "unreadable":
                raise FleetError(f"dead letter {ascii(job_id)[1:-1]} holds no job that could run: purge it", [job_id])
            case _:
                raise _unknown(job_id)

    def purge(self, job_ids: Sequence[str] | None = None) -> int:
        """Drop these dead letters, or all of them; return how many there were. Outcomes stay."""
        return self._channel.purge_dead(job_ids)


def _unknown(job_id: str) -> JobUnknown:
    return JobUnknown(f"there is no dead letter {ascii(job_id)[1:-1]}", [job_id])
