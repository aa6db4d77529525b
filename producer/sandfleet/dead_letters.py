"""`DeadLetters`: jobs that have no attempt left, and messages that are no jobs."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from sandfleet.channel.records import RunState
from sandfleet.errors import FleetError, JobUnknown
from sandfleet.job import Job
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet.channel.dead_letter import DeadLetter
    from sandfleet.channel.protocol import Channel

LISTED = 1000


class DeadLetters:
    """The fleet's dead letters: for 7 days, `MAX_DEAD_LETTERS` and `MAX_DEAD_BYTES` at most."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def list(self, limit: int = LISTED) -> list[DeadLetter]:
        """Return the newest dead letters, newest first."""
        return self._channel.dead_letters(limit)

    def count_dropped(self) -> int:
        """Return how many were dropped early in the last days: 10,000 and 64 MiB are kept."""
        return self._channel.count_dropped_dead()

    def show(self, job_id: str) -> DeadLetter:
        """Return one dead letter with its attempts.

        Raises:
            JobUnknown: no dead letter has that id.
        """
        found = self._channel.dead_letter(job_id) if job_id.isprintable() else None
        if found is None:
            raise _unknown(job_id)
        return found

    show_async = in_thread(show)

    def requeue(self, job_id: str, run: int | None = None, *, resolves_images: bool = False) -> Job:
        """Queue the job again under its id, as its next run with new attempts.

        It keeps the earlier outcome.

        `run` is the run that the caller has seen; default: that of the dead letter. If a later run
        has begun already, as after a second click, nothing happens. The run gets the image that the
        earlier one had; with `resolves_images`, the one that the image's name means now, and so do
        all jobs of its batch from then on.

        Raises:
            JobUnknown: no dead letter has that id.
            FleetError: it contains no job that could run.
        """
        found = self._channel.dead_letter(job_id) if job_id.isprintable() else None
        if found is None and run is None:
            raise _unknown(job_id)
        seen = run if run is not None else found.run if found is not None else 1
        (state,) = self._channel.start_runs([(job_id, seen)], resolves_images=resolves_images)
        match state:
            case RunState.QUEUED | RunState.LATER:
                return Job(job_id, self._channel)
            case RunState.UNREADABLE:
                raise FleetError(f"dead letter {ascii(job_id)[1:-1]} holds no job that could run: purge it", [job_id])
            case RunState.UNUSABLE:
                raise FleetError(
                    f"job {job_id} was not queued: a key of its queue or batch in Redis has a wrong type", [job_id]
                )
            case RunState.NO_MESSAGE | RunState.IN_QUEUE | RunState.UNKNOWN:
                raise _unknown(job_id)
            case _:
                assert_never(state)

    requeue_async = in_thread(requeue)

    def requeue_all(self, batch: str | None = None, *, resolves_images: bool = False) -> Iterator[tuple[str, RunState]]:
        """Queue all dead letters again, or those of one batch; yield each job's id and the result.

        Jobs that become dead letters meanwhile are left alone. `resolves_images` is as for
        `requeue`.
        """
        for runs in list(self._channel.dead_runs(batch)):
            states = self._channel.start_runs(runs, resolves_images=resolves_images)
            yield from zip((job_id for job_id, _ in runs), states, strict=True)

    def purge(self, job_ids: Sequence[str] | None = None) -> int:
        """Delete these dead letters, or all of them; return how many. Outcomes are kept."""
        return self._channel.purge_dead(job_ids)

    purge_async = in_thread(purge)


def _unknown(job_id: str) -> JobUnknown:
    return JobUnknown(f"there is no dead letter {ascii(job_id)[1:-1]}", [job_id])
