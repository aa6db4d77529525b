"""The words of a search: ``batch:nightly code:TIMEOUT label.suite=s7 since:2h text``."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sandfleet.history.questions import HistoryFilter
from sandfleet.overview.job_filter import STATES, JobFilter
from sandfleet_config.units import parse_seconds

if TYPE_CHECKING:
    from sandfleet.channel.job_facts import JobFacts

OPEN_STATES: Final = frozenset(("queued", "waiting", "running"))
_WORD: Final = re.compile(r"([a-z_]+):(.*)", re.DOTALL)
_LABEL: Final = re.compile(r"label\.([^=:]+)[=:](.*)", re.DOTALL)


@dataclass(frozen=True)
class Search:
    """A parsed search: the filter of ended runs, and the states that are asked for (empty: any)."""

    words: str
    history: HistoryFilter
    states: frozenset[str] = frozenset()
    text: str = field(default="")

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
        text = wanted.text.lower()
        return (
            (not self.states or job.state in self.states)
            and wanted.batch in {"", job.batch or ""}
            and wanted.queue in {"", job.queue}
            and wanted.image in {"", job.image}
            and wanted.host in {"", job.host}
            and all(job.labels.get(key) == value for key, value in wanted.labels.items())
            and (not text or text in job.line.lower())
        )

    def describe_open(self) -> str:
        """Say which jobs that have not ended were looked at."""
        wanted = self.history
        if wanted.batch:
            return "the first 5,000 jobs of the batch"
        if wanted.queue and not wanted.host:
            return "the next 200 of the queue"
        return "the jobs that workers have; for those that wait, name their batch: or queue:"


def parse_search(words: str, now: float) -> Search:
    """Parse the words of a search.

    Raises:
        ValueError: a word cannot be read; the message says how it is written.
    """
    fields: dict[str, Any] = {"codes": set(), "categories": set(), "labels": {}}
    states: set[str] = set()
    text: list[str] = []
    for word in _split(words):
        if (label := _LABEL.fullmatch(word)) is not None:
            fields["labels"][label[1]] = label[2]
            continue
        named = _WORD.fullmatch(word)
        if named is None or named[1] not in _KNOWN:
            text.append(word)
        elif named[1] == "state":
            states |= {_find_state(one) for one in named[2].split(",")}
        else:
            _add(fields, named[1], named[2], now)
    checked = JobFilter.of(codes=fields.pop("codes"), categories=fields.pop("categories"))
    labels: Mapping[str, str] = fields.pop("labels")
    wanted = HistoryFilter(
        codes=frozenset(code.value for code in checked.codes),
        categories=frozenset(category.value for category in checked.categories),
        labels=labels,
        text=" ".join(text),
        **fields,
    )
    return Search(words, wanted, frozenset(states))


_KNOWN: Final = {
    "batch": "batch",
    "job": "job_id",
    "host": "host",
    "queue": "queue",
    "image": "image",
    "fingerprint": "fingerprint",
    **dict.fromkeys(("code", "category", "state", "exit", "since", "until", "attempts", "run"), ""),
}


def _split(words: str) -> list[str]:
    try:
        return shlex.split(words, comments=False)
    except ValueError:
        return words.split()


def _find_state(name: str) -> str:
    if name.lower() not in STATES:
        raise ValueError(f"there is no state {ascii(name)[1:-1]}: one of {', '.join(STATES)}")
    return name.lower()


def _add(fields: dict[str, Any], name: str, value: str, now: float) -> None:
    match name:
        case "code":
            fields["codes"] |= {one for one in value.split(",") if one}
        case "category":
            fields["categories"] |= {one for one in value.split(",") if one}
        case "exit":
            fields["exit_code"] = _parse_number(name, value)
        case "since" | "until":
            fields[name] = now - parse_seconds(value)
        case "attempts":
            fields["min_attempts"] = _parse_number(name, value.removeprefix(">")) + value.startswith(">")
        case "run":
            fields["min_seconds"] = parse_seconds(value.removeprefix(">"))
        case _:
            fields[_KNOWN[name]] = value


def _parse_number(name: str, value: str) -> int:
    if not value.isdecimal() or len(value) > 6:  # noqa: PLR2004
        raise ValueError(f"{name}: needs a number, not {ascii(value)[1:-1]}")
    return int(value)
