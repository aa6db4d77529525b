"""`Operator`: all acts of one person."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet.actions.jobs import JobActs
from sandfleet.actions.marks import MarkActs
from sandfleet.actions.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet.history.words import Words
    from sandfleet.overview.job_filter import JobFilter


class Operator(MarkActs, JobActs):
    """Acts on a fleet in the name of its actor; pages and the command line call the same."""

    def note(self, action: str, target: str, *, count: int = 0, reason: str = "", result: str = "") -> None:
        """Leave a line in the audit about an act that was done by another way.

        Raises:
            FleetUnavailable: Redis is down, or this user may not write the audit.
        """
        self._note(action, target, count=count, reason=reason, result=result)

    def select_in_batch(self, batch: str, wanted: JobFilter, *, is_failed: bool = False) -> Selection:
        """Select the jobs of a batch that match; `is_failed` leaves out those that ended OK.

        Raises:
            ActionRefused: no batch is named.
        """
        return Selection.of_batch(self._channel.overview, batch, wanted, is_failed=is_failed)

    def select_open(self, words: Words, text: str = "") -> Selection:
        """Select the jobs that have not ended and match; `text` is the filter as somebody typed it.

        Raises:
            ActionRefused: the words leave out nothing, or ask how or when jobs ended.
        """
        return Selection.of_open(self._channel, words, text)

    def select_dead(self, batch: str | None = None) -> Selection:
        """Select all dead letters that are jobs, or those of one batch."""
        return Selection.of_dead(self._channel, batch)

    def select_jobs(self, job_ids: Sequence[str]) -> Selection:
        """Select jobs by their ids, each with its newest run.

        Raises:
            ActionRefused: there are none, or one is no id of a job.
        """
        found = Selection.of_jobs([(job_id, 1) for job_id in job_ids])
        facts = self._channel.overview.facts(job_ids)
        runs = [(job_id, job.run if job else 1) for job_id, job in zip(job_ids, facts, strict=True)]
        return Selection(found.text, runs)
