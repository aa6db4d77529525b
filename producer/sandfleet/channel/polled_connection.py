"""A connection to Redis that a selector polls."""

from __future__ import annotations

import contextlib
import selectors
from typing import TYPE_CHECKING, Any, Final

import redis

if TYPE_CHECKING:
    from collections.abc import Callable

CONNECTION_LOST: Final = (redis.ConnectionError, redis.TimeoutError, OSError)
NO_CONNECTION: Final = (redis.RedisError, OSError)
"""Errors of a new connection: Redis may also refuse it."""
BLOCK_SECONDS: Final = 10.0
"""How long Redis blocks a read, and how often a quiet subscription is pinged."""
SILENCE_SECONDS: Final = 5.0
"""How much later than that an answer may come before the connection counts as lost."""


class PolledConnection:
    """A connection of `pool`, registered with `selector`; `on_readable` is the data of its key.

    Ended by `release` or by `drop`.

    Raises:
        redis.RedisError, OSError: there is no connection; see `NO_CONNECTION`.
    """

    def __init__(self, pool: Any, selector: selectors.BaseSelector, on_readable: Callable[[], None]) -> None:
        self._pool = pool
        self._selector = selector
        self.redis: Any = pool.get_connection()
        # redis-py forgets the socket of a lost connection, which is to be unregistered all the
        # same.
        self._socket: Any = self.redis._sock  # noqa: SLF001
        try:
            selector.register(self._socket, selectors.EVENT_READ, on_readable)
        except BaseException:
            pool.release(self.redis)
            raise

    def release(self) -> None:
        """Return it to the pool, every answer having been read."""
        self._unregister()
        self._pool.release(self.redis)

    def drop(self) -> None:
        """Close it, since an answer may still come, and return it to the pool."""
        self._unregister()
        self.redis.disconnect()
        self._pool.release(self.redis)

    def _unregister(self) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(self._socket)
