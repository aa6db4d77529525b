"""The words of a filter for jobs that have not ended: the same on the pages and the command line."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sandfleet.history.questions import HistoryFilter

if TYPE_CHECKING:
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.history.words import Words

OPEN_STATES: Final = frozenset(("queued", "waiting", "running"))


def may_be_open(words: Words) -> bool:
    """Whether a job that has not ended can match: no word asks for how or when one ended."""
    asked = words.wanted
    asks_end = asked.codes or asked.categories or asked.exit_code is not None or asked.fingerprint
    asks_time = asked.since is not None or asked.until is not None
    return not (asks_end or asks_time) and (not words.states or bool(words.states & OPEN_STATES))


def names_jobs(words: Words, *, is_of_ended: bool = False) -> bool:
    """Whether the words leave out any job; ``newest:yes`` and ``""`` leave out none.

    `is_of_ended`: of those that have ended, ``state:ended`` leaves out none either.
    """
    has_words = replace(words.wanted, is_newest=False) != HistoryFilter()
    return has_words or (bool(words.states) and not is_of_ended)


def takes_open(job: JobFacts, words: Words, now: float, *, is_on_host: bool = False) -> bool:
    """Whether a job that has not ended matches.

    `is_on_host`: a worker of the host that is asked for has it.
    """
    asked, text = words.wanted, words.wanted.text.casefold()
    return (
        may_be_open(words)
        and (not words.states or job.state in words.states)
        and asked.batch in {"", job.batch or ""}
        and asked.job_id in {"", job.job_id}
        and asked.queue in {"", job.queue}
        and asked.image in {"", job.image}
        and (is_on_host or asked.host in {"", job.host})
        and all(job.labels.get(key) == value for key, value in asked.labels.items())
        and len(job.attempts) >= asked.min_attempts
        and (job.count_seconds(now) or 0.0) >= asked.min_seconds
        and (not text or text in job.line.casefold())
    )
