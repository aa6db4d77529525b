"""A search over jobs: the words of `sandfleet.history.words`, also for jobs that have not ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandfleet.history.open_filter import may_be_open
from sandfleet.history.words import Words, parse_words
from sandfleet.overview.open_jobs import LISTED

if TYPE_CHECKING:
    from sandfleet.history.questions import HistoryFilter


@dataclass(frozen=True)
class Search:
    """A search as it was typed, and as it was parsed."""

    text: str
    words: Words

    @property
    def history(self) -> HistoryFilter:
        """The filter of ended runs."""
        return self.words.wanted

    @property
    def may_be_ended(self) -> bool:
        """Whether ended runs can match."""
        return not self.words.states or "ended" in self.words.states

    @property
    def may_be_open(self) -> bool:
        """Whether jobs that have not ended can match."""
        return may_be_open(self.words)

    def describe_open(self) -> str:
        """Say which jobs that have not ended were looked at."""
        wanted = self.history
        if wanted.job_id:
            return "this job"
        if wanted.batch:
            return f"the first {LISTED.members:,} jobs of the batch"
        if wanted.host:
            return "the jobs that the host's workers have"
        of = "the queue" if wanted.queue else "each queue"
        return (
            f"the jobs that workers have and the next {LISTED.queued} of {of}; those that wait for another attempt,"
            " or are parked, are found by their batch:"
        )


def parse_search(text: str, now: float) -> Search:
    """Parse the words of a search.

    Raises:
        WordsInvalid: a word cannot be read; the message says how it is written.
    """
    return Search(text, parse_words(text, now=now))
