"""Drive a wait, in a thread or in an event loop: the two drivers of every wait of this package.

A wait is written once, as steps: `collect` reads what has ended, `next_pause` says how long to wait
for its waker. The steps ask Redis and may block for a moment; the event loop's driver calls them in
another thread. While nothing ends, it waits without one, so thousands of waits need no threads.
"""

from __future__ import annotations

import asyncio
import time
from itertools import chain
from typing import TYPE_CHECKING, Protocol, TypeVar

from sandfleet.channel.waker import CancelRelay

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sandfleet.channel.waker import Waker

Found = TypeVar("Found")


class Steps(Protocol[Found]):
    """One wait. Each of its calls may ask Redis, none waits for a job."""

    @property
    def waker(self) -> Waker:
        """Ends a pause when a job has ended."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to wait for."""
        ...

    def collect(self) -> Iterator[list[Found]]:
        """Do one round: yield what has ended since the last, some at a time."""
        ...

    def next_pause(self) -> float | None:
        """Return the seconds to wait for the waker before the next round; None or 0: no wait."""
        ...

    def gather_rest(self) -> float:
        """Return the seconds to gather more ends after the waker, before the next round."""
        ...


def drive(steps: Steps[Found], relay: CancelRelay) -> Iterator[Found]:
    """Yield what ends until nothing is left to wait for, or until the relay's cancel is set."""
    while not steps.is_over:
        yield from chain.from_iterable(steps.collect())
        if pause := steps.next_pause():
            if relay.wait(pause):
                return
            if (rest := steps.gather_rest()) > 0:
                time.sleep(rest)


async def drive_async(steps: Steps[Found], relay: CancelRelay | None = None) -> AsyncIterator[Found]:
    """Do what `drive` does and leave the event loop free."""
    relay = CancelRelay(steps.waker, None) if relay is None else relay
    while not steps.is_over:
        chunks = steps.collect()
        # A chunk at a time in another thread: going there and back takes as long as parsing a few.
        while found := await asyncio.to_thread(next, chunks, None):
            for item in found:
                yield item
            found.clear()  # the event loop still holds the list
        if pause := await asyncio.to_thread(steps.next_pause):
            if await relay.wait_async(pause):
                return
            await asyncio.sleep(steps.gather_rest())
