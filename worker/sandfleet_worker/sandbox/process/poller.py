"""Wait for several descriptors and call the handler of each that is ready (epoll(7)).

It costs a third of the CPU of `selectors` to register a descriptor (measured), and each job
registers six.
"""

from __future__ import annotations

import select
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT


class Poller:
    """Descriptors and their handlers. Unregister a descriptor before it is closed."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}

    def fileno(self) -> int:
        """Return a descriptor that is readable while a handler is due."""
        return self._epoll.fileno()

    def register(self, fd: int, handler: Callable[[], None], event: int = READ) -> None:
        """Call `handler` when `fd` is ready, or has an error or an end of file."""
        self._epoll.register(fd, event)
        self._handlers[fd] = handler

    def unregister(self, fd: int) -> None:
        """Call its handler no more, not even for an event that `wait` has seen already."""
        self._epoll.unregister(fd)
        del self._handlers[fd]

    def wait(self, timeout_seconds: float | None) -> bool:
        """Wait for events, without a limit if None, and call their handlers.

        Return False if none came in time.
        """
        events = self._epoll.poll(timeout_seconds)
        for fd, _ in events:
            if (handler := self._handlers.get(fd)) is not None:
                handler()
        return bool(events)

    def close(self) -> None:
        """Close the epoll descriptor; those that are registered stay open."""
        self._epoll.close()
