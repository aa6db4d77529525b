"""The rows of a search of jobs that have not ended, and what was not looked at."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from sandfleet.overview.open_jobs import find_open

if TYPE_CHECKING:
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.protocol import Channel

    from sandfleet_web.pages.search import Search

MAX_OPEN: Final = 200
"""Most jobs that have not ended that one search lists."""
MAX_CUT: Final = 5
"""Most queues that a page names of those that were not looked at as a whole."""


@dataclass(frozen=True)
class OpenJobs:
    """Jobs that match, `MAX_OPEN` at most; `has_more` if more do, `cut` says where not all were looked at."""

    jobs: tuple[JobFacts, ...] = ()
    has_more: bool = False
    cut: tuple[str, ...] = ()


def list_open(channel: Channel, search: Search) -> OpenJobs:
    """Return the jobs that match; none, if a word asks for how or when a job ended."""
    cut = list[str]()
    found = list(islice(find_open(channel, search.words, tell=cut.append), MAX_OPEN + 1))
    shown = cut[:MAX_CUT] + ([f"{len(cut) - MAX_CUT} more queues"] if len(cut) > MAX_CUT else [])
    return OpenJobs(tuple(found[:MAX_OPEN]), len(found) > MAX_OPEN, tuple(shown))
