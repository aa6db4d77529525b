"""What a stream of outcomes waits for, which jobs it asks about, and when it asks again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandfleet.ends import Ends
from sandfleet.errors import JobUnknown, ResultTimeout, name_jobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel import Channel

CHUNK_JOBS = 200
"""Outcomes fetched at once: with full output (64 KiB a stream, base64) about 35 MB, and two such portions are in memory."""
SHORTEST_PAUSE_SECONDS = 0.002
LONGEST_PAUSE_SECONDS = 0.05
PAUSE_SHARE = 1 / 16
"""A pause is such a part of what has been waited since the last end: looking late costs a job some per cent, no fixed time."""
SHORTEST_PAUSE_OF_MANY_SECONDS = 0.01
"""Of many jobs one ends all the time: asking as often as for a single one would cost more than the jobs."""
GAP_SHARE_OF_MANY = 1 / 2
"""And of many a pause is such a part of what was paused between the last two ends: some two questions an end, not ten."""
FIRST_LOOK_SECONDS = 1.0
EXPIRY_SLACK_SECONDS = 0.01
IDLE_SHARE = 4
"""After a round, a pause this many times as long as was spent on jobs that had not ended: waiting costs Redis little."""
PRESENCE_SECONDS = 10.0


def split(ids: Sequence[str]) -> list[Sequence[str]]:
    """Return `ids` in portions for one round trip each."""
    return [ids[start : start + CHUNK_JOBS] for start in range(0, len(ids), CHUNK_JOBS)]


class Wait:
    """One wait's state: which jobs are still awaited, and when to look again. It asks about all of them each time."""

    def __init__(self, channel: Channel, job_ids: Iterable[str], timeout: float | None) -> None:
        self._channel = channel
        self.pending = dict.fromkeys(job_ids)
        self._lost: list[str] = []
        now = time.monotonic()
        self._deadline = None if timeout is None else now + timeout
        self._next_look = now + min(FIRST_LOOK_SECONDS, PRESENCE_SECONDS)
        self._waiting_since = now
        self._paused_seconds = 0.0
        self._is_of_many = len(self.pending) != 1
        self._shortest_pause = SHORTEST_PAUSE_OF_MANY_SECONDS if self._is_of_many else SHORTEST_PAUSE_SECONDS
        self._has_found = False
        self._idle_seconds = 0.0

    def collect(self) -> Iterator[list[Outcome]]:
        """Go round once: yield the outcomes that are there, a few hundred at a time, and await those jobs no longer."""
        asked = found = 0
        spent, resumed = 0.0, time.monotonic()
        for job_ids, outcomes in self._channel.outcome_portions(self._portions()):
            ended = self._take(job_ids, outcomes)
            asked, found = asked + len(job_ids), found + len(ended)
            if ended:
                spent += time.monotonic() - resumed
                yield ended
                resumed = time.monotonic()  # what the reader does with them is no time of ours
            # Not held while the next are parsed: what the reader has dropped is gone then, and the collector has nothing to do.
            del outcomes, ended
        spent += time.monotonic() - resumed
        self._has_found = found > 0
        self._idle_seconds = spent * (asked - found) / asked if asked else 0.0

    def _portions(self) -> Iterable[Sequence[str]]:
        """Return the jobs to ask about, in portions; read one ahead of `_take`."""
        return split(list(self.pending))

    def _take(self, job_ids: Sequence[str], outcomes: Sequence[Outcome | None]) -> list[Outcome]:
        ended: list[Outcome] = []
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            if outcome is not None and job_id in self.pending:
                del self.pending[job_id]
                ended.append(outcome)
        return ended

    def next_pause(self) -> float | None:
        """Return how many seconds to wait before the next round, None where nothing is awaited any more.

        Raises:
            ResultTimeout: the time is up.
        """
        now = time.monotonic()
        is_over = self._deadline is not None and now >= self._deadline
        if (is_over or now >= self._next_look) and self._look(now):
            return 0.0
        if not self.pending:
            return None
        if self._has_found:
            if self._is_of_many:
                gap_pause = GAP_SHARE_OF_MANY * self._paused_seconds
                self._shortest_pause = max(SHORTEST_PAUSE_OF_MANY_SECONDS, gap_pause)
            self._waiting_since, self._paused_seconds = now, 0.0
        pause = min(LONGEST_PAUSE_SECONDS, max(self._shortest_pause, PAUSE_SHARE * (now - self._waiting_since)))
        pause = max(pause, IDLE_SHARE * self._idle_seconds)
        self._paused_seconds += pause
        if self._deadline is None:
            return pause
        if is_over:
            left = self._awaited()
            raise ResultTimeout(
                f"not ended in time: {name_jobs(left)} (still queued or running; wait again or cancel)", left
            )
        return min(pause, self._deadline - now)

    def _look(self, now: float) -> bool:
        """End what has expired, and stop waiting for what can never come: no record and, looked at after that, no outcome.

        Return whether outcomes are there to be fetched.
        """
        next_look, is_any = PRESENCE_SECONDS, False
        for portion in split(self._awaited()):
            look = self._channel.look(portion)
            is_any = is_any or look.ended > 0
            if look.next_expiry is not None:
                next_look = min(next_look, look.next_expiry + EXPIRY_SLACK_SECONDS)
            for job_id, outcome in zip(look.gone, self._channel.outcomes(look.gone), strict=True):
                if outcome is None:
                    self._lose(job_id)
                else:
                    is_any = True
        self._next_look = now + next_look
        return is_any

    def _awaited(self) -> list[str]:
        return list(self.pending)

    def _lose(self, job_id: str) -> None:
        self.pending.pop(job_id, None)
        self._lost.append(job_id)

    def raise_if_lost(self) -> None:
        """Raise `JobUnknown` for the jobs Redis has forgotten."""
        if self._lost:
            raise JobUnknown(f"the fleet no longer knows {name_jobs(self._lost)}", self._lost)


class FollowingWait(Wait):
    """Waits for jobs of one batch: the list of its ends says which to ask about, and only now and then it asks about all."""

    def __init__(self, channel: Channel, job_ids: Iterable[str], timeout: float | None, batch: str) -> None:
        super().__init__(channel, job_ids, timeout)
        self._ends = Ends(channel, batch)
        self._next_sweep = float("-inf")
        self._is_sweep = False

    def _portions(self) -> Iterator[Sequence[str]]:
        now = time.monotonic()
        self._is_sweep = now >= self._next_sweep
        if self._is_sweep:
            # In this order: what ends during the sweep is new in the list afterwards.
            self._ends.skip()
            self._next_sweep = now + PRESENCE_SECONDS
            yield from super()._portions()
            return
        for ids in self._ends.read_new():
            yield from split([job_id for job_id in dict.fromkeys(ids) if job_id in self.pending])

    def _take(self, job_ids: Sequence[str], outcomes: Sequence[Outcome | None]) -> list[Outcome]:
        if not self._is_sweep and None in outcomes:
            # A dead letter that runs again, and may stand at the same place of the list when it has.
            self._next_sweep = min(self._next_sweep, time.monotonic() + FIRST_LOOK_SECONDS)
        return super()._take(job_ids, outcomes)


class BatchWait(Wait):
    """Waits for a whole batch by the list of its ends; that grows with it, and no list of what is awaited is kept."""

    def __init__(self, channel: Channel, name: str, timeout: float | None) -> None:
        super().__init__(channel, (), timeout)
        self._name = name
        self._ends = Ends(channel, name)
        self._seen: set[str] = set()
        # Not the jobs that are awaited, which nobody needs to list, but whether any is.
        self.pending = {name: None}

    def collect(self) -> Iterator[list[Outcome]]:
        """Go round once, as any wait does; the wait is over when all that had been submitted before have ended."""
        total = self._channel.batch_counts(self._name).total
        yield from super().collect()
        if len(self._seen) >= total:
            self.pending.clear()
        elif self._ends.count >= total:
            self._ends.rewind()

    def _portions(self) -> Iterator[Sequence[str]]:
        for ids in self._ends.read_new():
            yield from split([job_id for job_id in dict.fromkeys(ids) if job_id not in self._seen])

    def _take(self, job_ids: Sequence[str], outcomes: Sequence[Outcome | None]) -> list[Outcome]:
        found = {job_id: outcome for job_id, outcome in zip(job_ids, outcomes, strict=True) if job_id not in self._seen}
        without = [job_id for job_id, outcome in found.items() if outcome is None]
        # One that ended and is there without an outcome is a dead letter that runs again: it ends again.
        for job_id in self._channel.look(without).gone if without else ():
            self._lose(job_id)
        self._seen.update(found.keys() - set(without))
        return [outcome for outcome in found.values() if outcome is not None]

    def _awaited(self) -> list[str]:
        return [job_id for job_id in self._channel.batch_ids(self._name) if job_id not in self._seen]

    def _lose(self, job_id: str) -> None:
        self._seen.add(job_id)
        self._lost.append(job_id)
