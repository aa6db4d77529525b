"""The live output of a batch's jobs, as it comes."""

from __future__ import annotations

import asyncio
import time
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING, Final

from sandfleet.channel.live import BEGIN
from sandfleet.channel.waker import CancelRelay, Waker
from sandfleet.collect.chunks import ChunkReader, OutputChunk
from sandfleet.collect.polling import split
from sandfleet.collect.steps import drive, drive_async
from sandfleet.errors import ResultTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence

    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.waker import CancelSignal

POLL_SECONDS: Final = 0.2
COUNT_SECONDS: Final = 1.0
MISSING_SECONDS: Final = 1.5
"""How long the end may look for what is missing: outcomes are large."""
"""How often the counts are read, which say that the batch has ended."""
STREAMS_AT_ONCE: Final = 16
"""Streams that one call reads; each has a MiB at most."""
MAX_FOLLOWED: Final = 10_000
"""Jobs whose positions are known; past it those are forgotten that wrote nothing for longest."""


class _Followed:
    """How far a job's stream was read, and when it grew last.

    One that `had_ended` at the start is not read, unless the job runs again.
    """

    def __init__(self) -> None:
        self.changed, self.cursor, self.reader, self.had_ended = 0.0, BEGIN, ChunkReader(), False


class BatchOutputWait:
    """Polls the index of a batch's streams, and reads those that have grown.

    Its steps yield (job id, chunk). The cost is that of the jobs which write; at the end outcomes are
    read for `MISSING_SECONDS` at most.
    """

    def __init__(
        self, channel: Channel, name: str, timeout: float | None, on_round: Callable[[], object] = lambda: None
    ) -> None:
        self._channel, self._name, self._on_round = channel, name, on_round
        self.waker = Waker()
        self.is_over = False
        now = time.monotonic()
        self._deadline = float("inf") if timeout is None else now + timeout
        self._next_count = now
        self._since = 0.0
        self._followed: dict[str, _Followed] = {}
        self._is_first, self._is_last = True, False

    def collect(self) -> Iterator[list[tuple[str, OutputChunk]]]:
        """Yield what has come since the last round."""
        has_ended = self._has_ended()
        changed = self._list_changed()
        for at in range(0, len(changed), STREAMS_AT_ONCE):
            yield from self._read(changed[at : at + STREAMS_AT_ONCE])
        self._on_round()
        if has_ended or self._is_last:
            self.is_over = True
            yield from self._finish()

    def _finish(self) -> Iterator[list[tuple[str, OutputChunk]]]:
        """Yield what is left at the ends of the streams, then what is missing there, while there is time."""
        if left := [(job_id, chunk) for job_id, one in self._followed.items() for chunk in one.reader.finish()]:
            yield left
        self._on_round()
        until = time.monotonic() + MISSING_SECONDS
        known = [job_id for job_id, followed in self._followed.items() if not followed.had_ended]
        for job_ids, outcomes in self._channel.outcome_chunks(split(known)):
            found = zip(job_ids, outcomes, strict=True)
            if rest := [
                (job_id, chunk) for job_id, end in found for chunk in self._followed[job_id].reader.find_missing(end)
            ]:
                yield rest
            if time.monotonic() > until:
                break

    def collect_last(self) -> Iterator[list[tuple[str, OutputChunk]]]:
        """Do the last round, before the batch has ended."""
        self._is_last = True
        return self.collect()

    def _has_ended(self) -> bool:
        now = time.monotonic()
        if now < self._next_count:
            return False
        self._next_count = now + COUNT_SECONDS
        state = self._channel.read_batch(self._name)
        return state.ended >= state.total

    def _list_changed(self) -> list[str]:
        """Return the jobs whose streams have grown, but not those that had ended at the start."""
        is_first, self._is_first = self._is_first, False
        changed: list[str] = []
        for page in self._read_index():
            ended = self._find_ended(page) if is_first else ()
            for job_id, at in page.items():
                followed = self._followed.setdefault(job_id, _Followed())
                followed.changed, followed.had_ended = at, job_id in ended
            changed += [job_id for job_id in page if job_id not in ended]
        self._forget_old()
        return changed

    def _read_index(self) -> Iterator[dict[str, float]]:
        """Yield the times of the jobs whose streams have grown, by time, some hundred at once."""
        while True:
            page = self._channel.live.list_changed(self._name, self._since)
            known = self._followed
            new = {job_id: at for job_id, at in page if job_id not in known or known[job_id].changed != at}
            if not new:
                return
            self._since = page[-1][1]
            yield new

    def _find_ended(self, job_ids: Collection[str]) -> set[str]:
        records = zip(job_ids, self._channel.records(list(job_ids)), strict=True)
        return {job_id for job_id, record in records if record is not None and record.state == "ended"}

    def _forget_old(self) -> None:
        excess = len(self._followed) - MAX_FOLLOWED
        if excess > 0:
            oldest = sorted(self._followed, key=lambda job_id: self._followed[job_id].changed)
            for job_id in oldest[: excess + MAX_FOLLOWED // 10]:
                del self._followed[job_id]

    def _read(self, job_ids: Sequence[str]) -> Iterator[list[tuple[str, OutputChunk]]]:
        left = [job_id for job_id in job_ids if job_id in self._followed]
        while left:
            found = self._channel.live.read({job_id: self._followed[job_id].cursor for job_id in left})
            for job_id, entries in found.items():
                followed = self._followed[job_id]
                followed.cursor = entries.cursor
                if chunks := [(job_id, chunk) for chunk in followed.reader.read(entries.entries)]:
                    yield chunks
            left = list(found)

    def next_pause(self) -> float | None:
        """Return the seconds until the next round; None if the wait is over.

        Raises:
            ResultTimeout: the deadline has passed.
        """
        if self.is_over:
            return None
        if time.monotonic() >= self._deadline:
            raise ResultTimeout(f"batch {self._name} has not ended in time (its jobs go on)")
        return POLL_SECONDS

    def gather_rest(self) -> float:
        """Return 0: the pause has gathered."""
        return 0.0


class BatchOutput:
    """The output of a batch's running jobs as (job id, chunk), for ``for`` and ``async for``.

    Of jobs that run now and of those that start later, if they asked for it (`output.live`). It
    ends with the batch, or when `cancel` is set, after all that has come by then.

    Raises, while iterated:
        ResultTimeout: the batch has not ended `timeout` seconds after the iteration began.
        FleetUnavailable: Redis is out of reach.
    """

    def __init__(
        self,
        channel: Channel,
        name: str,
        timeout: float | None = None,
        *,
        cancel: CancelSignal | None = None,
        on_round: Callable[[], object] = lambda: None,
    ) -> None:
        self._channel, self._name, self._timeout = channel, name, timeout
        self._cancel, self._on_round = cancel, on_round

    def _new_wait(self) -> BatchOutputWait:
        return BatchOutputWait(self._channel, self._name, self._timeout, self._on_round)

    def __iter__(self) -> Iterator[tuple[str, OutputChunk]]:
        """Yield each chunk once."""
        wait = self._new_wait()
        with closing(CancelRelay(wait.waker, self._cancel)) as relay:
            yield from drive(wait, relay)
            if not wait.is_over:  # cancelled
                yield from chain.from_iterable(wait.collect_last())

    async def __aiter__(self) -> AsyncIterator[tuple[str, OutputChunk]]:
        """Yield each chunk once; the event loop stays free."""
        wait = self._new_wait()
        with closing(CancelRelay(wait.waker, self._cancel)) as relay:
            async for found in drive_async(wait, relay):
                yield found
            if not wait.is_over:  # cancelled
                for found in await asyncio.to_thread(lambda: list(chain.from_iterable(wait.collect_last()))):
                    yield found
