"""A call that Redis works on while this process does something else."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Self

import redis

from sandfleet.channel.polled_connection import CONNECTION_LOST

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType


class PipelinedCall:
    """One command: sent when entered, its answer read by `answer`. It must be safe to repeat.

    It has a connection of its own until then, so that threads do not share one. If that connection
    is lost, `answer` repeats the command through the client, with the client's retries. So does a
    child that was forked in between, since the socket belongs to its parent.

    `following` is a command that is sent with it, on the same connection; `followed` is its answer.
    """

    def __init__(self, client: redis.Redis, *command: Any, following: tuple[Any, ...] = ()) -> None:
        self._client: Any = client
        self._command = command
        self._following = following
        self.followed: Any = None
        self._pool: Any = client.connection_pool
        self._connection: Any = None
        self._pid = os.getpid()

    def __enter__(self) -> Self:
        """Send the command; `answer` handles a lost connection."""
        try:
            self._connection = self._pool.get_connection()
            self._send(self._connection)
        except CONNECTION_LOST:
            self._drop()
        except BaseException:
            self._drop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Return the connection to the pool; close it first if its answer was not read."""
        self._drop()

    def answer(self) -> Any:
        """Wait for the answer and return it.

        Raises:
            redis.RedisError: Redis is out of reach after all retries, or refuses the command.
        """
        if self._connection is not None and self._pid == os.getpid():
            try:
                found = self._read_answers()
            except CONNECTION_LOST:
                self._drop()
            except redis.ResponseError:
                self._release()  # that is an answer too
                raise
            else:
                self._release()
                return found
        words = self._list_words()
        if not self._following:
            return self._client.execute_command(*words)
        pipe = self._client.pipeline(transaction=False)
        pipe.execute_command(*words)
        pipe.execute_command(*self._following)
        found, self.followed = pipe.execute(raise_on_error=False)
        for answer in (found, self.followed):
            if isinstance(answer, Exception):
                raise answer
        return found

    def _send(self, connection: Any) -> None:
        if self._following:
            connection.send_packed_command(connection.pack_commands([self._command, self._following]))
        else:
            connection.send_command(*self._command)

    def _list_words(self) -> Sequence[Any]:
        return self._command

    def _read_answers(self) -> Any:
        """Read all answers, so that none is left for the connection's next user."""
        try:
            return self._connection.read_response()
        finally:
            if self._following and self._connection.is_connected:
                self.followed = self._connection.read_response()

    def _release(self) -> None:
        connection, self._connection = self._connection, None
        self._pool.release(connection)

    def _drop(self) -> None:
        if self._connection is not None and self._pid == os.getpid():
            self._connection.disconnect()
            self._release()


class PackedCall(PipelinedCall):
    """A call whose command is packed as Redis's protocol has it, while Redis did something else.

    `list_words` returns the words of the command; it is called if the call has to be repeated.
    """

    def __init__(
        self,
        client: redis.Redis,
        packed: Sequence[bytes],
        list_words: Callable[[], Sequence[Any]],
        following: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(client, following=following)
        self._packed = packed
        self._list = list_words

    def _send(self, connection: Any) -> None:
        later = connection.pack_command(*self._following) if self._following else ()
        connection.send_packed_command([*self._packed, *later])

    def _list_words(self) -> Sequence[Any]:
        return self._list()
