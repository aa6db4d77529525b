"""What a stream of outcomes waits for, which jobs it asks about, and when it asks again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandfleet.channel.waker import Waker
from sandfleet.errors import JobUnknown, ResultTimeout, name_jobs

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.protocol import BatchWatch, Channel, JobWatch
    from sandfleet.channel.records import BatchState

CHUNK_JOBS = 200
"""Outcomes fetched at once: with full output (64 KiB a stream, base64) about 35 MB, and two such portions are in memory."""
FIRST_LOOK_SECONDS = 1.0
LOOK_SECONDS = 10.0
"""How often a wait looks at its jobs although no end was told: they may have expired, been lost, or ended untold."""
MIXED_LOOK_SECONDS = 1.0
"""The same in a batch where a worker of an older release has recorded an end: it tells nobody who follows the stream."""
EXPIRY_SLACK_SECONDS = 0.01
ENDS_AT_ONCE = 2000
GATHER_SECONDS = 0.01
"""Of a batch one job ends all the time: its ends are fetched this often at most, many at once."""


def split(ids: Sequence[str]) -> list[Sequence[str]]:
    """Return `ids` in portions for one round trip each."""
    return [ids[start : start + CHUNK_JOBS] for start in range(0, len(ids), CHUNK_JOBS)]


class Wait:
    """One wait's state: which jobs are still awaited, and when to look although nothing was heard.

    It asks about all jobs once, then hears which have ended, and asks about those.
    """

    gather_seconds = 0.0
    """How long a round waits for others that have ended, from the start of the round before."""

    def __init__(self, channel: Channel, job_ids: Iterable[str], timeout: float | None) -> None:
        self._channel = channel
        self.pending = dict.fromkeys(job_ids)
        self.waker = Waker()
        self._lost: list[str] = []
        now = time.monotonic()
        self._deadline = None if timeout is None else now + timeout
        self._next_look = now + min(FIRST_LOOK_SECONDS, LOOK_SECONDS)
        self._is_sweep = True
        self._has_looked = self._has_looked_last = False
        self._watch: JobWatch | None = None
        self.began = now

    def collect(self) -> Iterator[list[Outcome]]:
        """Go round once: yield the outcomes that are there, a few hundred at a time, and await those jobs no longer."""
        self.began = time.monotonic()
        for job_ids, outcomes in self._channel.outcome_portions(self._portions()):
            ended = self._take(job_ids, outcomes)
            if ended:
                yield ended
            # Not held while the next are parsed: what the reader has dropped is gone then, and the collector has nothing to do.
            del outcomes, ended

    def _portions(self) -> Iterable[Sequence[str]]:
        """Return the jobs to ask about, in portions; read one ahead of `_take`."""
        noticed = self._watch.take() if self._watch is not None else None
        if self._is_sweep or noticed is None:
            self._is_sweep = False
            return split(list(self.pending))
        return split([job_id for job_id in dict.fromkeys(noticed) if job_id in self.pending])

    def _take(self, job_ids: Sequence[str], outcomes: Sequence[Outcome | None]) -> list[Outcome]:
        ended: list[Outcome] = []
        for job_id, outcome in zip(job_ids, outcomes, strict=True):
            if outcome is not None and job_id in self.pending:
                del self.pending[job_id]
                ended.append(outcome)
        return ended

    def next_pause(self) -> float | None:
        """Return how many seconds to wait for the waker before the next round, None where nothing is awaited any more.

        Raises:
            ResultTimeout: the time is up.
        """
        if not self.pending:
            return None
        now = time.monotonic()
        is_over = self._deadline is not None and now >= self._deadline
        is_last = is_over and not self._has_looked_last
        if is_last or now >= self._next_look:
            self._has_looked_last = is_over
            if self._look(now):
                return 0.0
            self._is_sweep = self._has_looked or is_last  # of those that have ended untold
            self._has_looked = True
        if not self.pending:
            return None
        if is_over and not is_last:
            left = self._awaited()
            raise ResultTimeout(
                f"not ended in time: {name_jobs(left)} (still queued or running; wait again or cancel)", left
            )
        if self._is_sweep:
            return 0.0
        self._listen()
        pause = self._next_look - now
        return max(0.0, pause if self._deadline is None else min(pause, self._deadline - now))

    def _listen(self) -> None:
        """Have the waker woken by the next end."""
        if self._watch is None or not self._watch.is_alive:
            self._watch = self._channel.watch_jobs(list(self.pending), self.waker)

    def close(self) -> None:
        """Hear no more."""
        if self._watch is not None:
            self._watch.close()

    def _look(self, now: float) -> bool:
        """End what has expired, and stop waiting for what can never come: no record and, looked at after that, no outcome.

        Return whether outcomes are there to be fetched.
        """
        next_look, is_any = LOOK_SECONDS, False
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
        self._is_sweep = self._is_sweep or is_any
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


class _Ends:
    """The ends of a batch, read as its stream grows."""

    def __init__(self, channel: Channel, name: str, waker: Waker) -> None:
        self._channel, self._name, self._waker = channel, name, waker
        self.place = "0-0"
        self.is_mixed = False
        self._watch: BatchWatch | None = None

    def skip(self) -> None:
        """Pass over all that have ended by now."""
        self.place = self._channel.read_batch(self._name).place

    def read_new(self) -> Iterator[BatchState]:
        """Yield what is new, some thousand ends at a time; the last one says how far the batch is then."""
        is_more = True
        while is_more:
            state = self._channel.read_batch(self._name, self.place, ENDS_AT_ONCE)
            is_more = len(state.ends) == ENDS_AT_ONCE
            self.place = state.place
            self.is_mixed = self.is_mixed or state.imported > 0
            yield state

    def listen(self) -> None:
        """Have the waker woken by the next end."""
        if self._watch is None or not self._watch.is_alive:
            self._watch = self._channel.watch_batch(self._name, self._waker)
        self._watch.arm(self.place)

    def close(self) -> None:
        """Hear no more."""
        if self._watch is not None:
            self._watch.close()


class FollowingWait(Wait):
    """Waits for jobs of one batch: the stream of its ends says which to ask about, and only now and then it asks about all."""

    gather_seconds = GATHER_SECONDS

    def __init__(self, channel: Channel, job_ids: Iterable[str], timeout: float | None, batch: str) -> None:
        super().__init__(channel, job_ids, timeout)
        self._ends = _Ends(channel, batch, self.waker)

    def _portions(self) -> Iterator[Sequence[str]]:
        if self._is_sweep:
            self._is_sweep = False
            # In this order: what ends during the sweep is new in the stream afterwards.
            self._ends.skip()
            yield from split(list(self.pending))
            return
        for state in self._ends.read_new():
            yield from split(
                [job_id for job_id in dict.fromkeys(id_ for id_, _ in state.ends) if job_id in self.pending]
            )

    def _look(self, now: float) -> bool:
        is_any = super()._look(now)
        if self._ends.is_mixed:
            self._next_look = min(self._next_look, now + MIXED_LOOK_SECONDS)
        return is_any

    def _listen(self) -> None:
        self._ends.listen()

    def close(self) -> None:
        """Hear no more."""
        self._ends.close()


class BatchWait(Wait):
    """Waits for a whole batch by the stream of its ends; no list of what is awaited is kept.

    It yields each run of a job once: one that is run again while it waits comes a second time, when that run has ended.
    """

    gather_seconds = GATHER_SECONDS

    def __init__(self, channel: Channel, name: str, timeout: float | None) -> None:
        super().__init__(channel, (), timeout)
        self._name = name
        self._ends = _Ends(channel, name, self.waker)
        self._runs: dict[str, int] = {}
        """The newest run of each job that was seen to end."""
        self._untold: set[str] = set()
        """Jobs that are over, and not by an end in the stream: lost, or ended by who knows no batches."""
        self._found: list[str] = []
        # Not the jobs that are awaited, which nobody needs to list, but whether any is.
        self.pending = {name: None}

    def collect(self) -> Iterator[list[Outcome]]:
        """Go round once, as any wait does; the wait is over when all that had been submitted before have ended."""
        self.began = time.monotonic()
        self._is_sweep = False
        for state in self._ends.read_new():
            self._untold.difference_update(job_id for job_id, _ in state.ends)
            yield from self._fetch([job_id for job_id, run in dict(state.ends).items() if self._is_new(job_id, run)])
            # One that is there without an outcome is run again already, and ends again.
            for job_id, run in state.ends:
                self._note(job_id, run)
            if len(state.ends) < ENDS_AT_ONCE:
                yield from self._fetch_untold()
                if state.ended + len(self._untold) >= state.total:
                    self.pending.clear()

    def _is_new(self, job_id: str, run: int) -> bool:
        return self._runs.get(job_id, 0) < run

    def _note(self, job_id: str, run: int) -> None:
        if self._is_new(job_id, run):
            self._runs[job_id] = run

    def _fetch_untold(self) -> Iterator[list[Outcome]]:
        """Yield the outcomes of jobs that have ended, and not in the stream: it has been read to its end."""
        ids = [job_id for job_id in self._found if job_id not in self._runs]
        self._found.clear()
        self._untold.update(ids)
        yield from self._fetch(ids)

    def _fetch(self, ids: Sequence[str]) -> Iterator[list[Outcome]]:
        for job_ids, outcomes in self._channel.outcome_portions(split(ids)):
            found = [outcome for outcome in outcomes if outcome is not None]
            for job_id, outcome in zip(job_ids, outcomes, strict=True):
                if outcome is not None:
                    self._note(job_id, outcome.run)  # it may be a later one than that whose end led to it
            if found:
                yield found
            del outcomes, found

    def _look(self, now: float) -> bool:
        """Do what any wait does, and find those that have ended untold."""
        before = self._channel.read_batch(self._name)
        members = self._channel.batch_ids(self._name)
        unseen = [job_id for job_id in members if job_id not in self._runs]
        if before.total - before.ended > len(unseen):
            unseen = members  # some are run again
        next_look = MIXED_LOOK_SECONDS if self._ends.is_mixed else LOOK_SECONDS
        gone: list[str] = []
        ended = 0
        for portion in split(unseen):
            look = self._channel.look(portion)
            ended += look.ended
            if look.next_expiry is not None:
                next_look = min(next_look, look.next_expiry + EXPIRY_SLACK_SECONDS)
            outcomes = dict(zip(portion, self._channel.outcomes(portion), strict=True))
            self._found += [job_id for job_id, outcome in outcomes.items() if outcome is not None]
            gone += [job_id for job_id in look.gone if outcomes[job_id] is None]
        self._lose_missing(gone, len(unseen) - len(gone), before)
        self._next_look = now + next_look
        return ended > 0 or bool(self._found)

    def _lose_missing(self, gone: Sequence[str], there: int, before: BatchState) -> None:
        """Lose as many of the jobs without a record as the batch lacks: the others have ended long ago."""
        after = self._channel.read_batch(self._name)
        missing = min(state.total - state.ended for state in (before, after)) - there - len(self._untold)
        for job_id in gone[len(gone) - missing :] if missing > 0 else ():
            self._lose(job_id)

    def _awaited(self) -> list[str]:
        return [job_id for job_id in self._channel.batch_ids(self._name) if job_id not in self._runs]

    def _lose(self, job_id: str) -> None:
        self._note(job_id, 1)
        self._untold.add(job_id)
        self._lost.append(job_id)

    def _listen(self) -> None:
        self._ends.listen()

    def close(self) -> None:
        """Hear no more."""
        self._ends.close()
