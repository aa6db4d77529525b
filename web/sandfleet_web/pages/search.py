"""A search over jobs: the words of `sandfleet.history.words`, also for jobs that have not ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandfleet.history.words import parse_words

if TYPE_CHECKING:
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.history.questions import HistoryFilter

OPEN_STATES: Final = frozenset(("queued", "waiting", "running"))
MAX_OPEN: Final = 200
"""Most jobs that have not ended that one search lists."""
SEARCHED_OPEN: Final = 5_000
"""How many of a batch's jobs are looked at for them."""


@dataclass(frozen=True)
class Search:
    """A parsed search: the filter of ended runs, and the states that are asked for (empty: any)."""

    words: str
    history: HistoryFilter
    states: frozenset[str] = frozenset()

    @property
    def may_be_ended(self) -> bool:
        """Whether ended runs can match."""
        return not self.states or "ended" in self.states

    @property
    def may_be_open(self) -> bool:
        """Whether jobs that have not ended can match: no word asks for how or when one ended."""
        wanted = self.history
        asks_end = wanted.codes or wanted.categories or wanted.exit_code is not None or wanted.fingerprint
        asks_time = wanted.since is not None or wanted.until is not None
        return bool(self.states & OPEN_STATES) or not (self.states or asks_end or asks_time)

    def takes_open(self, job: JobFacts) -> bool:
        """Whether a job that has not ended matches."""
        wanted = self.history
        text = wanted.text.casefold()
        return (
            (not self.states or job.state in self.states)
            and wanted.batch in {"", job.batch or ""}
            and wanted.job_id in {"", job.job_id}
            and wanted.queue in {"", job.queue}
            and wanted.image in {"", job.image}
            and wanted.host in {"", job.host}
            and all(job.labels.get(key) == value for key, value in wanted.labels.items())
            and len(job.attempts) >= wanted.min_attempts
            and (job.count_seconds() or 0.0) >= wanted.min_seconds
            and (not text or text in job.line.casefold())
        )

    def describe_open(self) -> str:
        """Say which jobs that have not ended were looked at."""
        wanted = self.history
        if wanted.batch:
            return f"the first {SEARCHED_OPEN:,} jobs of the batch"
        if wanted.queue and not wanted.host:
            return f"the next {MAX_OPEN} of the queue"
        return "the jobs that workers have; for those that wait, name their batch: or queue:"


def parse_search(words: str, now: float) -> Search:
    """Parse the words of a search.

    Raises:
        WordsInvalid: a word cannot be read; the message says how it is written.
    """
    found = parse_words(words, now=now)
    return Search(words, found.wanted, found.states)
