"""`JobFilter`: which jobs of a batch; the same in lists and in retries."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeVar

from sandfleet_config.codes import Category, ErrorCode, read_category, read_code

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.overview import EndedJob, Overview

_T = TypeVar("_T", bound=str)
STATES: Final = ("queued", "waiting", "running", "ended")


@dataclass(frozen=True)
class JobFilter:
    """The jobs that have one of `codes`, or of the codes of `categories`, and all of the rest.

    What is empty is not asked for. `states` are those of a record: queued, waiting, running, ended.
    """

    codes: frozenset[ErrorCode] = frozenset()
    categories: frozenset[Category] = frozenset()
    states: frozenset[str] = frozenset()
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    host: str = ""

    @classmethod
    def of(
        cls,
        *,
        codes: Iterable[str] = (),
        categories: Iterable[str] = (),
        states: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        host: str = "",
    ) -> JobFilter:
        """Check and build a filter from names.

        Raises:
            ValueError: there is no such code, category or state; the message names those that are.
        """
        return cls(
            frozenset(_find(name.upper(), list(ErrorCode), "code") for name in codes),
            frozenset(_find(name.lower(), list(Category), "category") for name in categories),
            frozenset(_find(name.lower(), list(STATES), "state") for name in states),
            dict(labels or {}),
            host,
        )

    @property
    def is_by_code(self) -> bool:
        """Whether only ended jobs can match, by their code."""
        return bool(self.codes or self.categories)

    @property
    def is_of_record(self) -> bool:
        """Whether the code alone does not decide: labels or host are asked for."""
        return bool(self.labels or self.host)

    def takes_code(self, code: ErrorCode) -> bool:
        """Whether the code of an ended job matches."""
        return not self.is_by_code or code in self.codes or code.category in self.categories

    def takes(self, job: JobFacts) -> bool:
        """Whether the job matches as a whole."""
        if self.is_by_code and (job.code is None or job.state != "ended" or not self.takes_code(job.code)):
            return False
        is_labelled = all(job.labels.get(key) == value for key, value in self.labels.items())
        return is_labelled and (not self.states or job.state in self.states) and self.host in {"", job.host}


def _find(name: str, known: Sequence[_T], kind: str) -> _T:
    found = next((one for one in known if one == name), None)
    if found is None:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
        raise ValueError(f"there is no {kind} {ascii(name)[1:-1]}: {hint}")
    return found


def read_ended_code(job: EndedJob) -> ErrorCode:
    """Return the code of an end; one of a newer release counts as the fleet's fault."""
    try:
        return read_code(job.code)
    except ValueError:
        return ErrorCode.of_newer_release("UNKNOWN", read_category(None), is_retryable=True)


def find_jobs(overview: Overview, batch: str, wanted: JobFilter) -> Iterator[JobFacts]:
    """Yield the jobs of a batch that match, in the order of their submit.

    With a code or a category: in the order of their ends, since those are read alone. Jobs whose
    records have expired are left out.
    """
    for page in _id_pages(overview, batch, wanted):
        for job in overview.facts(page):
            if job is not None and wanted.takes(job):
                yield job


def _id_pages(overview: Overview, batch: str, wanted: JobFilter) -> Iterator[list[str]]:
    if not wanted.is_by_code:
        yield from overview.member_pages(batch)
        return
    for page in overview.ended_pages(batch):
        found = [ended.job_id for ended in page if wanted.takes_code(read_ended_code(ended))]
        if found:
            yield found
