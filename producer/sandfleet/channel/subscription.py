"""One pub/sub connection for all watched jobs of a process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

import redis

from sandfleet.channel.polled_connection import (
    BLOCK_SECONDS,
    CONNECTION_LOST,
    NO_CONNECTION,
    SILENCE_SECONDS,
    PolledConnection,
)

if TYPE_CHECKING:
    import selectors
    from collections.abc import Sequence

    from sandfleet.channel.watches import JobWatch

RECONNECT_SECONDS: Final = 0.1
SUBSCRIBED_AT_ONCE: Final = 500


class Subscription:
    """Subscribes to the channels of all watched jobs. All calls come from the thread of notices."""

    def __init__(self, pool: Any, selector: selectors.BaseSelector) -> None:
        self._pool = pool
        self._selector = selector
        self._watches: set[JobWatch] = set()
        self._subscribers: dict[bytes, set[JobWatch]] = {}
        self._connection: PolledConnection | None = None
        self._deadline = self._next_ping = self._next_connect = 0.0
        self._pings: dict[bytes, JobWatch | None] = {}
        """Pings without an answer; one with a watch was sent after the watch's SUBSCRIBE."""
        self._ping_count = 0

    def add(self, watch: JobWatch) -> None:
        """Subscribe for a new watch."""
        self._watches.add(watch)
        for channel in watch.channels:
            self._subscribers.setdefault(channel, set()).add(watch)
        if self._connection is not None:
            self._subscribe(watch)

    def remove(self, watch: JobWatch) -> None:
        """Unsubscribe from channels that no other watch needs."""
        self._watches.discard(watch)
        unused: list[bytes] = []
        for channel in watch.channels:
            subscribers = self._subscribers.get(channel, set())
            subscribers.discard(watch)
            if not subscribers:
                self._subscribers.pop(channel, None)
                unused.append(channel)
        if unused and not self._subscribers:
            self._send(("UNSUBSCRIBE",))  # from all: their names would be as many bytes as a SUBSCRIBE of each
        else:
            self._send(*_new_commands("UNSUBSCRIBE", unused))

    def keep_alive(self, now: float) -> None:
        """Connect, ping a quiet connection, and drop one that does not answer."""
        if not self._subscribers:
            return
        if self._connection is None:
            if now >= self._next_connect:
                self._connect(now)
        elif now > self._deadline:
            self._drop_and_wake()
        elif now >= self._next_ping:
            self._ping(None)

    def _connect(self, now: float) -> None:
        try:
            self._connection = PolledConnection(self._pool, self._selector, self._read_answers)
        except NO_CONNECTION:
            # Waits were woken when the last connection was lost; their own calls raise the error.
            self._next_connect = now + RECONNECT_SECONDS
            return
        self._pings.clear()
        self._deadline = now + BLOCK_SECONDS + SILENCE_SECONDS
        for watch in list(self._watches):
            self._subscribe(watch)

    def _subscribe(self, watch: JobWatch) -> None:
        self._send(*_new_commands("SUBSCRIBE", list(watch.channels)))
        self._ping(watch)  # Redis answers it after the SUBSCRIBE

    def _ping(self, watch: JobWatch | None) -> None:
        self._ping_count += 1
        token = b"%d" % self._ping_count
        self._pings[token] = watch
        self._next_ping = time.monotonic() + BLOCK_SECONDS
        self._send(("PING", token))

    def _send(self, *commands: tuple[Any, ...]) -> None:
        if self._connection is None:
            return
        try:
            for command in commands:
                packed = self._connection.redis.pack_command(*command)
                self._connection.redis.send_packed_command(packed, check_health=False)
        except CONNECTION_LOST:
            self._drop_and_wake()

    def _read_answers(self) -> None:
        try:
            is_more = True
            while is_more and (connection := self._connection) is not None:
                self._handle(connection.redis.read_response())
                is_more = connection.redis.can_read(timeout=0)
        except redis.ResponseError as error:
            for watch in list(self._watches):
                watch.fail(error)
        except CONNECTION_LOST:
            self._drop_and_wake()

    def _handle(self, answer: Any) -> None:
        self._deadline = time.monotonic() + BLOCK_SECONDS + SILENCE_SECONDS
        match answer:
            case [b"message", channel, notice]:
                for watch in self._subscribers.get(channel, ()):
                    watch.add(watch.channels[channel], notice)
            case [b"pong", token] | (bytes() as token):  # the latter while nothing is subscribed to
                subscribed = self._pings.pop(token, None)
                if subscribed is not None:
                    subscribed.add_all()
            case _:
                pass  # a subscription begins or ends

    def _drop_and_wake(self) -> None:
        """Drop the connection: any of the jobs may end unnoticed until there is another one."""
        self.close()
        self._next_connect = time.monotonic() + RECONNECT_SECONDS
        for watch in list(self._watches):
            watch.add_all()

    def close(self) -> None:
        """Drop the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.drop()


def _new_commands(name: str, channels: Sequence[bytes]) -> list[tuple[Any, ...]]:
    return [(name, *channels[at : at + SUBSCRIBED_AT_ONCE]) for at in range(0, len(channels), SUBSCRIBED_AT_ONCE)]
