"""The live output of one job, as it comes."""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING

from sandfleet.channel.live import BEGIN
from sandfleet.channel.waker import CancelRelay, Waker
from sandfleet.collect.chunks import ChunkReader, OutputChunk
from sandfleet.collect.polling import CHECK_SECONDS, EXPIRY_SLACK_SECONDS, FIRST_CHECK_SECONDS
from sandfleet.collect.steps import drive, drive_async
from sandfleet.errors import JobUnknown, OutputNotLive, ResultTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from sandfleet_config.live import LiveEntry

    from sandfleet.channel.live import LiveWatch
    from sandfleet.channel.protocol import Channel, JobWatch


class LiveWait:
    """Follows one job's stream to the end of its newest run; its steps yield chunks.

    Without `follows` it reads what is there now.

    Invariant: a worker sends the last output before it records the end. So whoever has seen the end
    finds all output by one more read.
    """

    def __init__(self, channel: Channel, job_id: str, timeout: float | None, *, follows: bool = True) -> None:
        self._channel, self._job_id, self._follows = channel, job_id, follows
        self.waker = Waker()
        self.is_over = False
        self._reader, self._cursor = ChunkReader(), BEGIN
        now = time.monotonic()
        self._deadline = float("inf") if timeout is None else now + timeout
        self._next_check = now + FIRST_CHECK_SECONDS
        self._must_ask = True
        self._end_watch: JobWatch | None = None
        self._watch: LiveWatch | None = None

    def collect(self) -> Iterator[list[OutputChunk]]:
        """Yield the chunks that have come."""
        has_ended = self._has_ended()
        while (entries := self._read()) is not None:
            if chunks := list(self._reader.read(entries)):
                yield chunks
        if has_ended or not self._follows:
            self.is_over = True
            (outcome,) = self._channel.outcomes([self._job_id]) if has_ended else (None,)
            if rest := [*self._reader.finish(), *self._reader.find_missing(outcome)]:
                yield rest

    def _has_ended(self) -> bool:
        """Whether the job has ended; asks Redis only if it may have.

        Raises:
            OutputNotLive: it has not asked for live output.
            JobUnknown: Redis has forgotten it.
        """
        is_noticed = self._end_watch is not None and self._end_watch.take() != {}  # None: it may have ended
        if not self._must_ask and not is_noticed:
            return False
        self._must_ask = False
        (record,) = self._channel.records([self._job_id])
        if record is None:
            raise JobUnknown(f"the fleet no longer knows job {self._job_id}", [self._job_id])
        if not record.live and record.submitted:  # a job of a stock producer has no submit time
            raise OutputNotLive(
                f"job {self._job_id} does not show its output while it runs: submit it with --live (output.live: true)"
                " for that; its outcome has the output when it has ended",
                [self._job_id],
            )
        return record.state == "ended"

    def _read(self) -> Sequence[LiveEntry] | None:
        """Return the next entries; None if there are no more by now."""
        found = self._watch.take(self._cursor) if self._watch is not None else None
        if found is None:
            found = self._channel.live.read({self._job_id: self._cursor}).get(self._job_id)
        if found is None:
            return None
        self._cursor = found.cursor
        return found.entries

    def next_pause(self) -> float | None:
        """Return the seconds to wait for more output or for the end; None if the wait is over.

        Raises:
            ResultTimeout: the deadline has passed.
        """
        if self.is_over:
            return None
        now = time.monotonic()
        if now >= self._deadline:
            raise ResultTimeout(f"job {self._job_id} has not ended in time (it goes on)", [self._job_id])
        if now >= self._next_check:
            expiry = self._channel.expire_overdue([self._job_id]).next_expiry
            pause = CHECK_SECONDS if expiry is None else min(CHECK_SECONDS, expiry + EXPIRY_SLACK_SECONDS)
            self._next_check, self._must_ask = now + pause, True
            return None
        self._listen()
        return min(self._next_check, self._deadline) - now

    def _listen(self) -> None:
        if self._end_watch is None or not self._end_watch.is_alive:
            self._end_watch = self._channel.watch_jobs([self._job_id], self.waker)
        if self._watch is None or not self._watch.is_alive:
            self._watch = self._channel.live.watch(self._job_id, self.waker)
        self._watch.arm(self._cursor)

    def gather_rest(self) -> float:
        """Return 0: a worker sends few chunks a second."""
        return 0.0

    def close(self) -> None:
        """Receive no more notices."""
        for watch in (self._end_watch, self._watch):
            if watch is not None:
                watch.close()
        self._end_watch = self._watch = None


class LiveStream:
    """The output of a running job in chunks, for ``for`` and for ``async for``.

    It begins with the oldest output that Redis still has, waits for a job that is queued, goes
    through later attempts, and ends with the job's newest run. Each iteration begins anew.

    Raises, while iterated:
        OutputNotLive: the job did not ask for it (`output.live`).
        ResultTimeout: the job has not ended `timeout` seconds after the iteration began.
        JobUnknown: Redis has forgotten the job.
        FleetUnavailable: Redis is out of reach.
    """

    def __init__(self, channel: Channel, job_id: str, timeout: float | None = None, *, follows: bool = True) -> None:
        self._channel, self._job_id, self._timeout, self._follows = channel, job_id, timeout, follows

    def _new_wait(self) -> LiveWait:
        return LiveWait(self._channel, self._job_id, self._timeout, follows=self._follows)

    def __iter__(self) -> Iterator[OutputChunk]:
        """Yield each chunk once."""
        with closing(self._new_wait()) as wait:
            yield from drive(wait, CancelRelay(wait.waker, None))

    async def __aiter__(self) -> AsyncIterator[OutputChunk]:
        """Yield each chunk once; the event loop stays free."""
        with closing(self._new_wait()) as wait:
            async for chunk in drive_async(wait):
                yield chunk
