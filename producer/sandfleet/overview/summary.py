"""`BatchSummary`: how far a batch is, how fast, and which jobs failed last."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sandfleet_config.codes import Category, ErrorCode

from sandfleet.overview.job_filter import read_ended_code

if TYPE_CHECKING:
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.overview import BatchEntry, Overview

RATE_SECONDS: Final = 60.0
"""The rate is that of the jobs that ended in these last seconds."""
RATE_JOBS: Final = 500
SHOWN_FAILURES: Final = 5


@dataclass(frozen=True, kw_only=True)
class BatchSummary:
    """The state of a batch; times are unix times, 0.0 if not known.

    `codes` counts its `ended` jobs by code. `rate` is how many ended per second lately, and
    `seconds_left` the time that the others take at this rate, None if none ended lately.
    `last_failures` are the newest ends that are not OK, newest first; cancelled jobs come last, since
    a stop cancels many.
    """

    name: str
    total: int
    ended: int
    codes: Mapping[str, int]
    is_sealed: bool
    used: float = 0.0
    last_end: float = 0.0
    rate: float = 0.0
    seconds_left: float | None = None
    last_failures: tuple[JobFacts, ...] = field(default=(), repr=False)

    @property
    def left(self) -> int:
        """The number of jobs that have not ended."""
        return max(0, self.total - self.ended)

    @property
    def ok(self) -> int:
        """The number of jobs that ended OK."""
        return self.codes.get(ErrorCode.OK.value, 0)

    @property
    def failed(self) -> int:
        """The number of jobs that ended with any other code."""
        return max(0, self.ended - self.ok)

    @property
    def state(self) -> str:
        """``ended`` (all jobs have), ``running``, or ``open`` (all have, more may be submitted)."""
        if self.left:
            return "running"
        return "ended" if self.is_sealed else "open"


def summarize(entry: BatchEntry) -> BatchSummary:
    """Return a batch's summary from the list of all batches: without rate and failures."""
    return BatchSummary(
        name=entry.name,
        total=entry.total,
        ended=entry.ended,
        codes=entry.codes,
        is_sealed=entry.is_sealed,
        used=entry.used,
        last_end=entry.last_end,
    )


def read_summary(overview: Overview, name: str) -> BatchSummary:
    """Read a batch's counts and its newest ends; the cost does not depend on its size."""
    entry = overview.batch_entry(name)
    newest = overview.newest_ended(name, RATE_JOBS)
    rate = _measure_rate([job.at for job in newest], time.time())
    left = max(0, entry.total - entry.ended)
    bad = [job for job in newest if read_ended_code(job).category is not Category.OK]
    bad.sort(key=lambda job: read_ended_code(job) is ErrorCode.CANCELLED)
    failed = [job.job_id for job in bad[:SHOWN_FAILURES]]
    found = overview.facts(failed) if failed else []
    return BatchSummary(
        name=name,
        total=entry.total,
        ended=entry.ended,
        codes=entry.codes,
        is_sealed=entry.is_sealed,
        used=entry.used,
        last_end=entry.last_end,
        rate=rate,
        seconds_left=left / rate if rate > 0 else None,
        last_failures=tuple(job for job in found if job is not None),
    )


def _measure_rate(times: list[float], now: float) -> float:
    """Return ends per second of the last `RATE_SECONDS`, from the newest ends' times in order."""
    recent = [at for at in times if now - at <= RATE_SECONDS]
    if len(recent) < 2:  # noqa: PLR2004  one end has no rate
        return 0.0
    return len(recent) / max(now - recent[-1], 0.001)
