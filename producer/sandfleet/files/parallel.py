"""Transfers in several threads. All of them end soon after an error of one, or after Ctrl-C."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

THREADS: Final = 8

Check: TypeAlias = "Callable[[], None]"
"""Raises `Stopped` once the other transfers of the same call are to end."""


class Stopped(Exception):
    """Another transfer of the same call has failed, or Ctrl-C came: this one ends, too."""


@contextmanager
def open_pool(calls: int, name: str) -> Generator[tuple[ThreadPoolExecutor, Check]]:
    """Yield `THREADS` threads at most for so many calls, 1 at least, and a check for these calls.

    A call runs in a thread also if it is the only one: the caller's own thread then waits for it,
    and hears Ctrl-C. At an error in the block no other call begins, and the check ends those that
    run.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    with ThreadPoolExecutor(min(THREADS, calls), name) as pool:
        try:
            yield pool, check
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
