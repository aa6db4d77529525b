"""`Selection`: the jobs that somebody acts on, as (job id, run)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

from sandfleet_config.codes import Category
from sandfleet_config.queues import JOB_ID

from sandfleet.errors import ActionRefused
from sandfleet.history.open_filter import may_be_open, names_jobs
from sandfleet.history.questions import MAX_PAGE
from sandfleet.history.words import format_words
from sandfleet.overview.job_filter import find_jobs, read_ended_code
from sandfleet.overview.open_jobs import WHOLE, find_open

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sandfleet.channel.overview import Overview
    from sandfleet.channel.protocol import Channel
    from sandfleet.history.questions import History, HistoryFilter
    from sandfleet.history.words import Words
    from sandfleet.overview.job_filter import JobFilter

MAX_COUNTED: Final = 100_000
SHOWN_JOBS: Final = 5


class Selection:
    """Jobs by a filter, with the filter as text for the audit.

    Acts take jobs from its front: the next call goes on where the last one stopped. `count` starts
    anew, if `runs` can be read again.
    """

    def __init__(self, text: str, runs: Iterable[tuple[str, int]] | Callable[[], Iterable[tuple[str, int]]]) -> None:
        """Keep the filter's text, and the jobs or a function that finds them.

        Raises:
            ActionRefused: the text is empty: nobody acts on all jobs by mistake.
        """
        if not text.strip():
            raise ActionRefused("nothing was asked for: an empty filter would be every job of the fleet")
        self.text = " ".join(text.split())
        self._find = runs if callable(runs) else lambda: runs
        self._left: Iterator[tuple[str, int]] | None = None
        self._next: list[tuple[str, int]] = []

    @classmethod
    def of_batch(cls, overview: Overview, batch: str, wanted: JobFilter, *, is_failed: bool = False) -> Selection:
        """Select the jobs of a batch that match; `is_failed` leaves out those that ended OK.

        Raises:
            ActionRefused: no batch is named.
        """
        if not batch:
            raise ActionRefused("name a batch: without one the filter would be every job of the fleet")
        return cls(
            f"batch:{batch} {describe_filter(wanted)}",
            lambda: _find_in_batch(overview, batch, wanted, is_failed=is_failed),
        )

    @classmethod
    def of_jobs(cls, runs: Sequence[tuple[str, int]]) -> Selection:
        """Select these jobs.

        Raises:
            ActionRefused: there are none, or one is no id of a job.
        """
        wrong = next((job_id for job_id, _ in runs if not JOB_ID.match(job_id)), None)
        if wrong is not None:
            raise ActionRefused(f"{wrong[:100]!a} is no id of a job")
        shown = " ".join(job_id for job_id, _ in runs[:SHOWN_JOBS])
        return cls(f"{shown} and {len(runs) - SHOWN_JOBS} more" if len(runs) > SHOWN_JOBS else shown, list(runs))

    @classmethod
    def of_history(cls, text: str, history: History, wanted: HistoryFilter) -> Selection:
        """Select jobs whose newest run ended, not OK, and matches; at most `MAX_DEPTH` of them.

        Raises:
            ActionRefused: the filter is empty.
        """
        return cls(text, lambda: _find_in_history(history, wanted))

    @classmethod
    def of_open(cls, channel: Channel, words: Words, text: str = "") -> Selection:
        """Select the jobs that have not ended and match the words: all that workers have and that wait.

        Without a batch: of those that wait, up to 100,000 in queues, and none that waits for another
        attempt or is parked in its batch.

        Raises:
            ActionRefused: the words leave out nothing, or ask how or when jobs ended.
        """
        if not names_jobs(words):
            raise ActionRefused("name the jobs: these words leave out nothing, so it would be every job")
        if not may_be_open(words):
            raise ActionRefused("these words ask how or when jobs ended: there is nothing to cancel")
        found = partial(find_open, channel, words, WHOLE)
        return cls(text or format_words(words), lambda: ((job.job_id, job.run) for job in found()))

    @classmethod
    def of_dead(cls, channel: Channel, batch: str | None = None) -> Selection:
        """Select all dead letters that are jobs, or those of one batch."""
        text = "all dead letters" if batch is None else f"dead letters of batch:{batch}"
        return cls(text, lambda: (run for page in channel.dead_runs(batch) for run in page))

    def count(self) -> tuple[int, bool, tuple[str, ...]]:
        """Return how many jobs there are, whether there are more than that, and the first few ids."""
        found, total = list[str](), 0
        for job_id, _ in islice(self._find(), MAX_COUNTED):
            total += 1
            if len(found) < SHOWN_JOBS:
                found.append(job_id)
        return total, total >= MAX_COUNTED, tuple(found)

    def take(self, count: int) -> list[tuple[str, int]]:
        """Take the next jobs, at most `count`."""
        if self._left is None:
            self._left = iter(self._find())
        taken = self._next + list(islice(self._left, count - len(self._next)))
        self._next = list(islice(self._left, 1))
        return taken

    @property
    def has_more(self) -> bool:
        """Whether `take` has left jobs."""
        return bool(self._next)


def _find_in_history(history: History, wanted: HistoryFilter) -> Iterator[tuple[str, int]]:
    newest, cursor = replace(wanted, is_newest=True), ""
    while True:
        page = history.find_runs(newest, count=MAX_PAGE, cursor=cursor)
        yield from ((run.job_id, run.run) for run in page.rows if run.category != Category.OK.value)
        cursor = page.cursor
        if not cursor:
            return


def describe_filter(wanted: JobFilter) -> str:
    """Return a filter as the words in which people write it."""
    words = [f"code:{code}" for code in sorted(wanted.codes)]
    words += [f"category:{category}" for category in sorted(wanted.categories)]
    words += [f"state:{state}" for state in sorted(wanted.states)]
    words += [f"label.{key}={value}" for key, value in sorted(wanted.labels.items())]
    return " ".join([*words, *([f"host:{wanted.host}"] if wanted.host else [])])


def _find_in_batch(overview: Overview, batch: str, wanted: JobFilter, *, is_failed: bool) -> Iterator[tuple[str, int]]:
    is_by_end = (wanted.is_by_code or is_failed) and not wanted.is_of_record and wanted.states <= {"ended"}
    if is_by_end:  # the ends tell all: no record needs to be read
        for page in overview.ended_pages(batch):
            for ended in page:
                code = read_ended_code(ended)
                if wanted.takes_code(code) and not (is_failed and code.category is Category.OK):
                    yield ended.job_id, ended.run
        return
    for job in find_jobs(overview, batch, wanted):
        is_ok = job.code is not None and job.code.category is Category.OK
        if not (is_failed and (job.state != "ended" or is_ok)):
            yield job.job_id, job.run
