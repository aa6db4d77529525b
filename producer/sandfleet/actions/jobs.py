"""Cancel jobs, run them again, and empty the dead letters: by a selection, in chunks."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, assert_never

from sandfleet.actions.actor import Acts, check_text
from sandfleet.actions.results import ActionResult, JobsPreview
from sandfleet.channel.overview import NextRun
from sandfleet.channel.records import CancelState, RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sandfleet.actions.selection import Selection

Kind = Literal["done", "skipped", "gone"]
MAX_JOBS: Final = 1000
"""Jobs of one call; the selection says whether there are more."""
CHUNK_JOBS: Final = 100


class JobActs(Acts):
    """Acts on jobs. Each tells of every job: done, skipped, or gone, and why."""

    def preview_jobs(self, selection: Selection) -> JobsPreview:
        """Count the jobs of a selection; the pages and the command line show that first."""
        count, is_more, first = selection.count()
        return JobsPreview(text=selection.text, count=count, is_more=is_more, first=first)

    preview_cancel = preview_retry = preview_dead = preview_jobs

    def cancel_jobs(self, selection: Selection, reason: str = "") -> ActionResult:
        """Cancel the next 1,000 jobs of the selection, queued or running.

        Raises:
            ActionRefused: the reason is too long, or not one line.
        """
        return self._act("cancel", selection, reason, self._cancel)

    def retry_jobs(self, selection: Selection, reason: str = "") -> ActionResult:
        """Start the next run of the next 1,000 jobs of the selection, each if its run is the newest.

        Raises:
            ActionRefused: the reason is too long, or not one line.
        """
        return self._act("retry", selection, reason, self._retry)

    def requeue_dead(self, selection: Selection, reason: str = "") -> ActionResult:
        """Queue the next 1,000 dead letters of the selection again.

        Raises:
            ActionRefused: the reason is too long, or not one line.
        """
        return self._act("requeue dead", selection, reason, self._retry)

    def purge_dead(self, selection: Selection, reason: str = "") -> ActionResult:
        """Delete the next 1,000 dead letters of the selection; outcomes are kept.

        Raises:
            ActionRefused: the reason is too long, or not one line.
        """
        return self._act("purge dead", selection, reason, self._purge)

    def _act(
        self,
        action: str,
        selection: Selection,
        reason: str,
        do: Callable[[Sequence[tuple[str, int]]], Iterable[tuple[Kind, str]]],
    ) -> ActionResult:
        """Do the act in chunks; the audit tells also of one that an error has cut short."""
        known = check_text(reason, "reason", is_needed=False)
        kinds, reasons = Counter[Kind](), Counter[str]()
        runs = selection.take(MAX_JOBS)
        end = "cut short: "
        try:
            for at in range(0, len(runs), CHUNK_JOBS):
                for kind, why in do(runs[at : at + CHUNK_JOBS]):
                    kinds[kind] += 1
                    reasons[why] += 1
            end = ""
        finally:
            result = ActionResult(
                done=kinds["done"],
                skipped=kinds["skipped"],
                gone=kinds["gone"],
                has_more=selection.has_more,
                reasons=reasons,
                text=selection.text,
            )
            self._note(action, selection.text, count=result.done, reason=known, result=end + result.describe())
        return result

    def _cancel(self, runs: Sequence[tuple[str, int]]) -> Iterable[tuple[Kind, str]]:
        ids = [job_id for job_id, _ in runs]
        there = {job.job_id for job in self._channel.overview.facts(ids) if job is not None}
        states = self._channel.cancel([job_id for job_id in ids if job_id in there])
        for _ in range(len(ids) - len(states)):
            yield "gone", "have no record any more"
        for state in states:
            match state:
                case CancelState.CANCELLED:
                    yield "done", "were cancelled before they started"
                case CancelState.REQUESTED:
                    yield "done", "run, and are told to end"
                case CancelState.ENDED:
                    yield "skipped", "have ended"
                case _:
                    assert_never(state)

    def _retry(self, runs: Sequence[tuple[str, int]]) -> Iterable[tuple[Kind, str]]:
        for state in self._channel.overview.start_runs([NextRun(*run) for run in runs]):
            match state:
                case RunState.QUEUED:
                    yield "done", "are queued again"
                case RunState.LATER:
                    yield "skipped", "were run again meanwhile, or have not ended"
                case RunState.IN_QUEUE:
                    yield "skipped", "ended in the queue, and stand too far back in it"
                case RunState.UNUSABLE:
                    yield "skipped", "have a key of a wrong type in Redis"
                case RunState.NO_MESSAGE | RunState.UNREADABLE:
                    yield "gone", "have specs that are no longer kept"
                case RunState.UNKNOWN:
                    yield "gone", "have no record any more"
                case _:
                    assert_never(state)

    def _purge(self, runs: Sequence[tuple[str, int]]) -> Iterable[tuple[Kind, str]]:
        deleted = self._channel.purge_dead([job_id for job_id, _ in runs])
        for at in range(len(runs)):
            yield ("done", "were deleted") if at < deleted else ("gone", "were no dead letters any more")
