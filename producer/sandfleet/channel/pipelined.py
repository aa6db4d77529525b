"""A command that Redis works on while this process does something else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

import redis

if TYPE_CHECKING:
    from types import TracebackType


class Flight:
    """One command, sent when entered and answered by `answer`; it must be one that may be repeated.

    It has a connection to itself meanwhile, so threads do not meet. Whatever happens to that connection, `answer` then asks
    again in the client's way, with its patience; so does a child that was forked in between, since the socket is its parent's.
    """

    def __init__(self, client: redis.Redis, *command: Any) -> None:
        self._client: Any = client
        self._command = command
        self._pool: Any = client.connection_pool
        self._connection: Any = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        """Send the command; trouble is `answer`'s business."""
        try:
            self._connection = self._pool.get_connection()
            self._connection.send_command(*self._command)
        except (redis.ConnectionError, redis.TimeoutError, OSError):
            self._drop()
        except BaseException:
            self._drop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the connection back; one whose answer nobody has read is closed first."""
        self._drop()

    def answer(self) -> Any:
        """Wait for the answer and return it.

        Raises:
            redis.RedisError: Redis is out of reach for longer than the client's patience, or refuses the command.
        """
        if self._connection is not None and self._pid == os.getpid():
            try:
                found = self._connection.read_response()
            except (redis.ConnectionError, redis.TimeoutError, OSError):
                self._drop()
            except redis.ResponseError:
                self._release()  # an answer too, wholly read
                raise
            else:
                self._release()
                return found
        return self._client.execute_command(*self._command)

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        self._pool.release(connection)

    def _drop(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.disconnect()
            self._release()
