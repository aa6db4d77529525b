"""Waiting for jobs: which jobs to ask Redis about, and when.

A wait asks about all jobs once. Then notices say which jobs have ended, and it asks about those.
Now and then it checks the others: they may have expired, been lost, or ended without a notice.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandfleet.channel.waker import Waker
from sandfleet.errors import JobUnknown, ResultTimeout, name_jobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.protocol import Channel, JobWatch

CHUNK_JOBS = 200
"""Outcomes fetched by one call: about 35 MB with full output (64 KiB a stream, base64).

Two chunks are in memory.
"""
FIRST_CHECK_SECONDS = 1.0
"""So soon a wait for an unknown job fails. Most jobs end before, and cost no check."""
CHECK_SECONDS = 10.0
"""So late at most a wait finds a job that ended, was lost or expired without a notice."""
EXPIRY_SLACK_SECONDS = 0.01
"""Redis counts in whole milliseconds, and a job has expired only after the last of them."""


def split(ids: Sequence[str]) -> list[Sequence[str]]:
    """Return `ids` in chunks, one call to Redis each."""
    return [ids[start : start + CHUNK_JOBS] for start in range(0, len(ids), CHUNK_JOBS)]


class Wait:
    """One wait for some jobs: `pending` are those whose outcomes have not been returned."""

    gather_seconds = 0.0
    """Least time between the starts of two rounds: one call fetches all that end meanwhile."""

    def __init__(self, channel: Channel, job_ids: Iterable[str], timeout: float | None) -> None:
        self._channel = channel
        self.pending = dict.fromkeys(job_ids)
        self.waker = Waker()
        self._lost: list[str] = []
        now = time.monotonic()
        self.round_started = now
        self._deadline = None if timeout is None else now + timeout
        self._next_check = now + min(FIRST_CHECK_SECONDS, CHECK_SECONDS)
        self._has_checked = self._has_checked_at_deadline = False
        self._asks_all = True
        self._watch: JobWatch | None = None
        self._told: list[Outcome] = []

    def collect(self) -> Iterator[list[Outcome]]:
        """Do one round: yield the outcomes that exist, a few hundred at a time."""
        self.round_started = time.monotonic()
        chunks = self._new_chunks()
        if told := self._take([outcome.job_id for outcome in self._told], self._told):
            yield told
        for job_ids, outcomes in self._channel.outcome_chunks(chunks):
            ended = self._take(job_ids, outcomes)
            if ended:
                yield ended
            # Released before the next outcomes are parsed: see `outcome_reader.PARSED_AT_ONCE`.
            del outcomes, ended

    def _new_chunks(self) -> Iterable[Sequence[str]]:
        """Return the jobs to ask about, in chunks; read one ahead of `_take`.

        `_told` are the outcomes that notices have told: Redis is not asked for them.
        """
        noticed = self._watch.take() if self._watch is not None else None
        self._told = []
        if self._asks_all or noticed is None:
            self._asks_all = False
            return split(list(self.pending))
        self._told = [outcome for outcome in noticed.values() if outcome is not None]
        return split([job_id for job_id, outcome in noticed.items() if outcome is None and job_id in self.pending])

    def _take(self, job_ids: Sequence[str], outcomes: Sequence[Outcome | None]) -> list[Outcome]:
        ended: list[Outcome] = []
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            if outcome is not None and job_id in self.pending:
                del self.pending[job_id]
                ended.append(outcome)
        return ended

    @property
    def is_over(self) -> bool:
        """Whether no job is left to wait for."""
        return not self.pending

    def gather_rest(self) -> float:
        """Return the seconds until the next round may start."""
        return max(0.0, self.round_started + self.gather_seconds - time.monotonic())

    def add(self, job_ids: Iterable[str]) -> None:
        """Wait for these jobs, too; some may have ended."""
        self.pending.update(dict.fromkeys(job_ids))
        self._asks_all = True
        self.close_watch()

    def next_pause(self) -> float | None:
        """Return the seconds to wait for the waker before the next round; None if the wait is over.

        Raises:
            ResultTimeout: the deadline has passed.
        """
        if not self.pending:
            return None
        now = time.monotonic()
        is_over = self._deadline is not None and now >= self._deadline
        is_last = is_over and not self._has_checked_at_deadline
        if is_last or now >= self._next_check:
            self._has_checked_at_deadline = is_over
            if self._check(now):
                return 0.0
            # From the second check on, ask about all jobs: some may have ended without a notice.
            self._asks_all = self._has_checked or is_last
            self._has_checked = True
        if not self.pending:
            return None
        if is_over and not is_last:
            left = self._list_pending()
            raise ResultTimeout(
                f"not ended in time: {name_jobs(left)} (still queued or running; wait again or cancel)", left
            )
        if self._asks_all:
            return 0.0
        self._listen()
        pause = self._next_check - now
        return max(0.0, pause if self._deadline is None else min(pause, self._deadline - now))

    def _listen(self) -> None:
        """Have the next end wake the waker."""
        if self._watch is None or not self._watch.is_alive:
            self._watch = self._channel.watch_jobs(list(self.pending), self.waker)

    def close_watch(self) -> None:
        """Receive no more notices of single jobs; the next pause begins to receive them again."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def close(self) -> None:
        """Receive no more notices."""
        self.close_watch()

    def _check(self, now: float) -> bool:
        """End jobs that have expired, and give up those without a record and an outcome.

        Return whether there are outcomes to fetch.
        """
        next_expiry: float | None = None
        is_any = False
        for chunk in split(self._list_pending()):
            check = self._channel.expire_overdue(chunk)
            is_any = is_any or check.ended > 0
            next_expiry = find_sooner(next_expiry, check.next_expiry)
            # Read after the record was found missing: it may have ended in between.
            for job_id, outcome in zip(check.unknown, self._channel.outcomes(check.unknown), strict=True):
                if outcome is None:
                    self._lose(job_id)
                else:
                    is_any = True
        self._schedule_check(now, next_expiry)
        self._asks_all = self._asks_all or is_any
        return is_any

    def _schedule_check(self, now: float, next_expiry: float | None) -> None:
        seconds = self._check_seconds()
        if next_expiry is not None:
            seconds = min(seconds, next_expiry + EXPIRY_SLACK_SECONDS)
        self._next_check = now + seconds

    def _check_seconds(self) -> float:
        return CHECK_SECONDS

    def _list_pending(self) -> list[str]:
        return list(self.pending)

    def _lose(self, job_id: str) -> None:
        self.pending.pop(job_id, None)
        self._lost.append(job_id)

    def raise_if_lost(self) -> None:
        """Raise `JobUnknown` for the jobs that Redis has forgotten."""
        if self._lost:
            raise JobUnknown(f"the fleet no longer knows {name_jobs(self._lost)}", self._lost)


def find_sooner(first: float | None, second: float | None) -> float | None:
    """Return the lesser of two times, None if both are."""
    return min((seconds for seconds in (first, second) if seconds is not None), default=None)
