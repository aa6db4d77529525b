"""The acts of the pages on a real fleet: those of `sandfleet.actions`, as the command line has them.

A retry takes what had ended when its count was shown. So a second click does nothing, even if the
jobs have failed again meanwhile.
"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, assert_never, cast

from sandfleet.actions import Actor, Operator, Selection
from sandfleet.history.open_filter import OPEN_STATES, names_jobs
from sandfleet.history.questions import MAX_DEPTH, MAX_PAGE
from sandfleet.history.words import parse_words
from sandfleet.overview.job_filter import JobFilter, read_ended_code
from sandfleet.overview.open_jobs import BEYOND
from sandfleet_config.codes import Category

from sandfleet_web.pages.acts import Done, Preview, VerbName, Wish
from sandfleet_web.pages.search import parse_search

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.actions import ActionResult
    from sandfleet.channel.protocol import Channel
    from sandfleet.history.questions import History

    from sandfleet_web.pages.user_files import Viewer

READER: Final = Actor("pages", via="web")
"""Who counts; a count leaves no line in the audit."""
FAILED: Final = frozenset(one.value for one in Category if one is not Category.OK)


class OperatorActs:
    """Counts and acts on a fleet."""

    def __init__(self, channel: Channel, history: History | None) -> None:
        self._channel, self._history = channel, history

    def preview(self, wish: Wish) -> Preview:
        """Return what it would do, and do nothing."""
        operator = Operator(self._channel, READER)
        match cast("VerbName", wish.verb):
            case "cordon" | "drain" | "uncordon":
                found = operator.preview_host(wish.target)
                return Preview(found.running, (found.text,))
            case "pause" | "resume":
                queue = operator.preview_queue(wish.target)
                return Preview(queue.waiting, (queue.text,))
            case "cancel" | "retry" | "requeue" | "purge":
                jobs = operator.preview_jobs(self._select(operator, wish))
                notes = [f"more than {jobs.count:,} match"] if jobs.is_more else []
                is_search = wish.verb == "cancel" and not (wish.job or wish.batch)
                notes += [BEYOND] if is_search and not parse_words(wish.words).wanted.batch else []
                return Preview(jobs.count, tuple(notes), jobs.first)
            case _ as other:
                assert_never(other)

    def perform(self, wish: Wish, viewer: Viewer) -> Done:
        """Do it, and leave a line in the audit."""
        operator = Operator(self._channel, Actor(viewer.name, viewer.role, "web"))
        result = self._act(operator, wish)
        more = "; there are more: do it again for the next ones" if result.has_more else ""
        is_of_jobs = wish.verb in {"cancel", "retry", "requeue", "purge"}
        text = result.describe() + more if is_of_jobs else result.text
        return Done(text, result.done, result.skipped, result.gone)

    def _act(self, operator: Operator, wish: Wish) -> ActionResult:
        match cast("VerbName", wish.verb):
            case "cordon":
                return operator.cordon(wish.target, wish.reason)
            case "drain":
                return operator.drain(wish.target, wish.reason, wish.deadline_seconds or 0.0)
            case "uncordon":
                return operator.uncordon(wish.target, wish.reason)
            case "pause":
                return operator.pause(wish.target, wish.reason)
            case "resume":
                return operator.resume(wish.target, wish.reason)
            case "cancel":
                return operator.cancel_jobs(self._select(operator, wish), wish.reason)
            case "retry":
                return operator.retry_jobs(self._select(operator, wish), wish.reason)
            case "requeue":
                return operator.requeue_dead(self._select(operator, wish), wish.reason)
            case "purge":
                return operator.purge_dead(self._select(operator, wish), wish.reason)
            case _ as other:
                assert_never(other)

    def _select(self, operator: Operator, wish: Wish) -> Selection:
        """Return the jobs that a wish names."""
        text = wish.describe()
        if wish.words and not names_jobs(parse_words(wish.words), is_of_ended=wish.verb == "retry"):
            raise ValueError(
                "this search leaves out nothing, so it would be all jobs: name a batch, a job or more words"
            )
        if wish.verb in {"requeue", "purge"}:
            return operator.select_dead(wish.batch or None)
        if wish.verb == "cancel":
            if wish.job:
                return operator.select_jobs([wish.job])
            if wish.batch:
                return operator.select_in_batch(wish.batch, JobFilter(states=OPEN_STATES))
            return operator.select_open(parse_words(wish.words), text)
        if wish.job:
            return Selection(text, lambda: self._find_ended_job(wish))
        if wish.batch:
            return Selection(text, lambda: self._find_failed(wish))
        return Selection(text, lambda: self._find_in_history(wish))

    def _find_ended_job(self, wish: Wish) -> Iterator[tuple[str, int]]:
        (job,) = self._channel.overview.facts([wish.job])
        if job is not None and job.state == "ended" and job.ended <= (wish.seen or math.inf):
            yield job.job_id, job.run

    def _find_failed(self, wish: Wish) -> Iterator[tuple[str, int]]:
        wanted = JobFilter.of(codes=[wish.code] if wish.code else [])
        for page in self._channel.overview.ended_pages(wish.batch):
            for ended in page:
                code = read_ended_code(ended)
                is_failed = code.category is not Category.OK and wanted.takes_code(code)
                if is_failed and ended.at <= (wish.seen or math.inf):
                    yield ended.job_id, ended.run

    def _find_in_history(self, wish: Wish) -> Iterator[tuple[str, int]]:
        """Find failed runs that no later run has replaced."""
        if self._history is None:
            raise ValueError("there is no history here: name a batch or a job")
        search = parse_search(wish.words, time.time())
        if not search.may_be_ended:
            return
        found = search.history
        until = min(found.until or math.inf, wish.seen or math.inf)
        wanted = replace(found, is_newest=True, until=until if until < math.inf else None)
        if not wanted.codes and not wanted.categories:
            wanted = replace(wanted, categories=FAILED)
        cursor, count = "", 0
        while count < MAX_DEPTH:
            page = self._history.find_runs(wanted, count=MAX_PAGE, cursor=cursor)
            yield from ((run.job_id, run.run) for run in page.rows if run.category in FAILED)
            count += len(page.rows)
            cursor = page.cursor
            if not cursor:
                return
