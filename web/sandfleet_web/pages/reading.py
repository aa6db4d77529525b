"""Reads for all viewers together: each question is asked once, and its answer kept for a second."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sandfleet.errors import FleetUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")
THREADS: Final = 4
KEPT_SECONDS: Final = 1.0
MAX_KEPT: Final = 256
MAX_WAITING: Final = 64
ANSWER_SECONDS: Final = 5.0
"""Deadline of a read that a page waits for; the read itself goes on until its own deadline."""


class TooBusy(Exception):
    """More different reads are asked for than the threads can do: try again in a moment."""


class Reads:
    """Runs blocking reads in threads.

    Viewers that ask the same question share the read and its answer, also while it is on its way.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._pool = ThreadPoolExecutor(THREADS, "pages")
        self._kept: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()
        self._pending: dict[Hashable, asyncio.Future[Any]] = {}

    async def read(self, key: Hashable, question: Callable[[], T], *, kept_seconds: float = KEPT_SECONDS) -> T:
        """Return the answer of `question`, at most `kept_seconds` old.

        Raises:
            TooBusy: too many other questions wait.
            FleetUnavailable: no answer came in time.
        """
        known = self._kept.get(key)
        if known is not None and self._clock() - known[0] < kept_seconds:
            return known[1]  # type: ignore[no-any-return]  # what its own question returned
        pending = self._pending.get(key)
        if pending is None:
            pending = self._start(key, question)
        # Not by `wait_for`: a question may itself fail with a TimeoutError that says more.
        done, _ = await asyncio.wait([pending], timeout=ANSWER_SECONDS)
        if not done:
            raise FleetUnavailable(f"there was no answer within {ANSWER_SECONDS:g} s")
        return pending.result()  # type: ignore[no-any-return]

    async def run(self, work: Callable[[], T]) -> T:
        """Run an action, whose answer is nobody else's."""
        self._refuse_too_many()
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _start(self, key: Hashable, question: Callable[[], Any]) -> asyncio.Future[Any]:
        self._refuse_too_many()
        pending = asyncio.get_running_loop().run_in_executor(self._pool, question)
        self._pending[key] = pending

        def keep(done: asyncio.Future[Any]) -> None:
            del self._pending[key]
            if done.cancelled() or done.exception() is not None:
                return
            self._kept[key] = (self._clock(), done.result())
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)

        pending.add_done_callback(keep)
        return pending

    def _refuse_too_many(self) -> None:
        if len(self._pending) >= MAX_WAITING:
            raise TooBusy("too many different pages are asked for at once: try again in a moment")

    def forget(self) -> None:
        """Forget all answers: an action has changed what they say."""
        self._kept.clear()

    def close(self) -> None:
        """Start no more reads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
