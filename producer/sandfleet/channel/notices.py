"""Hears from Redis that jobs have ended: a thread with one subscription for all awaited jobs, and one blocked read a batch.

`finish.lua` publishes each result on the channel of its key and adds it to its batch's stream. A notice can get lost with its
connection, so whoever is woken asks Redis what has ended; after a loss all jobs that are awaited may have.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar

import redis

from sandfleet.channel.watches import BatchWatch, JobWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.waker import Waker

BLOCK_SECONDS: Final = 10.0
"""How long Redis holds a read, and how often a quiet subscription is asked for a sign of life."""
SILENCE_SECONDS: Final = 5.0
"""How much longer an answer may take before the connection counts as lost."""
RECONNECT_SECONDS: Final = 0.1
IDLE_SECONDS: Final = 5.0
"""The thread and its connection end when nobody has waited for so long."""
JOIN_SECONDS: Final = 5.0
SUBSCRIBED_AT_ONCE: Final = 500
_Watch = TypeVar("_Watch", JobWatch, BatchWatch)
_LOST: Final = (redis.ConnectionError, redis.TimeoutError, OSError)


class Notices:
    """The watches of one process, and the thread that serves them while there are any."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = (
            threading.RLock()
        )  # a wait that the garbage collector finds is closed in whatever thread that runs in
        self._reader: _Reader | None = None

    def watch_jobs(self, job_ids: Sequence[str], waker: Waker) -> JobWatch:
        """Subscribe to the notices of `job_ids`; the first `take` that is not empty says that the subscription has begun."""
        watch = JobWatch(self, job_ids, waker)
        self.ask(lambda reader: reader.add(watch), watch)
        return watch

    def watch_batch(self, name: str, waker: Waker) -> BatchWatch:
        """Follow a batch; nothing happens before the first `arm`."""
        watch = BatchWatch(self, name, waker)
        self.ask(lambda reader: None, watch)  # noqa: ARG005
        return watch

    def has(self, watch: JobWatch | BatchWatch) -> bool:
        """Whether the watch is served."""
        reader = self._reader
        return reader is not None and watch in reader.watches

    def ask(self, request: Callable[[_Reader], None], watch: JobWatch | BatchWatch | None = None) -> None:
        """Have the thread do something; `watch` is a new one."""
        if self._pid != os.getpid():
            _of_parents.append(self._reader)  # its sockets are not ours to close
            self._reset()
        with self._lock:
            if self._reader is None or not self._reader.accept(watch):
                if watch is None:
                    return
                self._reader = _Reader(self._connections)
                self._reader.accept(watch)
                self._reader.start()
            self._reader.ask(request)

    def raise_error(self, error: Exception | None) -> None:
        """Raise what Redis has answered to a watch, as `FleetUnavailable`."""
        if error is not None:
            with self._connections.guard():
                raise error

    def drop(self, watch: JobWatch | BatchWatch) -> None:
        """Serve the watch no more."""
        reader = self._reader
        if reader is not None and watch in reader.watches:
            reader.watches.discard(watch)
            reader.ask(lambda reader: reader.forget(watch))

    def close(self) -> None:
        """End the thread and its connections; who waits is woken, and may watch anew."""
        if self._pid != os.getpid():
            return
        with self._lock:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()


_of_parents: list[Any] = []


class _Reader(threading.Thread):
    """Reads one subscription and the streams of batches. All of it happens in this thread but for what says otherwise."""

    def __init__(self, connections: Connections) -> None:
        super().__init__(name="sandfleet-notices", daemon=True)
        self._pool: Any = connections.redis.connection_pool
        self.watches: set[JobWatch | BatchWatch] = set()
        self._lock = threading.RLock()  # as in `Notices`
        self._is_over = self._is_told_to_stop = False
        self._requests: deque[Callable[[_Reader], None]] = deque()
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell, selectors.EVENT_READ, None)
        self._subscribers: dict[bytes, set[JobWatch]] = {}
        self._connection: Any = None
        self._deadline = 0.0
        self._next_ping = self._next_connect = 0.0
        self._pinged: dict[bytes, JobWatch | None] = {}
        self._pings = 0

    # From any thread

    def accept(self, watch: JobWatch | BatchWatch | None) -> bool:
        """Take a watch on; False where this thread has ended or is about to."""
        with self._lock:
            if self._is_over:
                return False
            if watch is not None:
                self.watches.add(watch)
            return True

    def ask(self, request: Callable[[_Reader], None]) -> None:
        """Have a request done soon."""
        with self._lock:
            if not self._is_over:
                self._requests.append(request)
                self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it has rung often enough
            self._ringer.send(b"x")

    def stop(self) -> None:
        """End, and wait for it."""
        with self._lock:
            if self._is_over:
                return
            self._is_told_to_stop = True
            self._ring()
        if threading.current_thread() is not self:
            self.join(JOIN_SECONDS)

    # In this thread

    def run(self) -> None:
        """Serve until nobody has waited for a while."""
        idle_since = time.monotonic()
        try:
            while not self._is_told_to_stop:
                self._look()
                now = time.monotonic()
                if self.watches:
                    idle_since = now
                elif now - idle_since >= IDLE_SECONDS and self._end_if_idle():
                    return
        finally:
            self._end()

    def _end_if_idle(self) -> bool:
        with self._lock:
            self._is_over = not self.watches and not self._requests
            return self._is_over

    def _end(self) -> None:
        with self._lock:
            self._is_over = True
            watches, self.watches = self.watches, set()
        self._drop_connection()
        for watch in watches:
            if isinstance(watch, BatchWatch):
                self._drop_read(watch)
            watch.waker.wake()
        self._selector.close()
        self._bell.close()
        self._ringer.close()

    def _look(self) -> None:
        """Wait for something to do, a second at most, and do it."""
        for key, _ in self._selector.select(1.0):
            if key.data is None:
                self._bell.recv(4096)
            elif isinstance(key.data, BatchWatch):
                self._read_end(key.data)
            else:
                self._read_notices()
        while self._requests:
            self._requests.popleft()(self)
        now = time.monotonic()
        self._care_for_subscription(now)
        for watch in self._of_kind(BatchWatch):
            if watch.connection is not None and now > watch.deadline:
                self._lose_read(watch)

    def _of_kind(self, kind: type[_Watch]) -> list[_Watch]:
        # `list` copies the set in one step; other threads add to it.
        return [watch for watch in list(self.watches) if isinstance(watch, kind)]

    # Jobs

    def add(self, watch: JobWatch) -> None:
        """Subscribe for a new watch."""
        for channel in watch.channels:
            self._subscribers.setdefault(channel, set()).add(watch)
        if self._connection is not None:
            self._send_subscribe(list(watch.channels), watch)

    def _care_for_subscription(self, now: float) -> None:
        if not self._subscribers:
            return
        if self._connection is None:
            if now >= self._next_connect:
                self._connect(now)
        elif now > self._deadline:
            self._lose_connection()
        elif now >= self._next_ping:
            self._send_ping(None)

    def _connect(self, now: float) -> None:
        try:
            self._connection = self._pool.get_connection()
            self._selector.register(self._connection._sock, selectors.EVENT_READ, self._connection)  # noqa: SLF001
        except (redis.RedisError, OSError):
            # Who waits was woken when the connection was lost, and hears from Redis itself what is wrong with it.
            self._connection = None
            self._next_connect = now + RECONNECT_SECONDS
            return
        self._pinged.clear()
        self._deadline = now + BLOCK_SECONDS + SILENCE_SECONDS
        for watch in self._of_kind(JobWatch):
            if self._connection is not None:
                self._send_subscribe(list(watch.channels), watch)

    def _send_subscribe(self, channels: list[bytes], watch: JobWatch) -> None:
        commands = [
            ("SUBSCRIBE", *channels[at : at + SUBSCRIBED_AT_ONCE]) for at in range(0, len(channels), SUBSCRIBED_AT_ONCE)
        ]
        self._send(*commands)
        self._send_ping(watch)  # its answer comes after theirs

    def _send_ping(self, watch: JobWatch | None) -> None:
        self._pings += 1
        token = b"%d" % self._pings
        self._pinged[token] = watch
        self._next_ping = time.monotonic() + BLOCK_SECONDS
        self._send(("PING", token))

    def _send(self, *commands: tuple[Any, ...]) -> None:
        if self._connection is None:
            return
        try:
            for command in commands:
                packed = self._connection.pack_command(*command)
                self._connection.send_packed_command(packed, check_health=False)
        except _LOST:
            self._lose_connection()

    def _read_notices(self) -> None:
        if self._connection is None:
            return
        try:
            self._take_notice(self._connection.read_response())
            while self._connection is not None and self._connection.can_read(timeout=0):
                self._take_notice(self._connection.read_response())
        except redis.ResponseError as error:
            for watch in self._of_kind(JobWatch):
                watch.fail(error)
        except _LOST:
            self._lose_connection()

    def _take_notice(self, reply: Any) -> None:
        self._deadline = time.monotonic() + BLOCK_SECONDS + SILENCE_SECONDS
        match reply:
            case [b"message", channel, _]:
                for watch in self._subscribers.get(channel, ()):
                    watch.note(watch.channels[channel])
            case [b"pong", token] | (bytes() as token):  # the latter where nothing is subscribed to
                subscribed = self._pinged.pop(token, None)
                if subscribed is not None:
                    subscribed.note(None)
            case _:
                pass  # that a subscription begins or ends

    def _lose_connection(self) -> None:
        self._drop_connection()
        self._next_connect = time.monotonic() + RECONNECT_SECONDS
        for watch in self._of_kind(JobWatch):
            watch.note(None)

    def _drop_connection(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._give_back(connection, connection)

    # Batches

    def read_stream(self, watch: BatchWatch) -> None:
        """Have Redis answer at the next end of a batch."""
        if watch not in self.watches or watch.connection is not None:
            return
        try:
            watch.connection = self._pool.get_connection()
            self._selector.register(watch.connection._sock, selectors.EVENT_READ, watch)  # noqa: SLF001
            block = round(BLOCK_SECONDS * 1000)
            watch.connection.send_command("XREAD", "COUNT", 1, "BLOCK", block, "STREAMS", watch.key, watch.place)
            watch.deadline = time.monotonic() + BLOCK_SECONDS + SILENCE_SECONDS
        except (redis.RedisError, OSError):
            self._lose_read(watch)

    def _read_end(self, watch: BatchWatch) -> None:
        if watch.connection is None:
            return
        try:
            watch.connection.read_response()
        except redis.ResponseError as error:
            watch.fail(error)
        except _LOST:
            self._lose_read(watch)
            return
        self._selector.unregister(watch.connection._sock)  # noqa: SLF001
        connection, watch.connection = watch.connection, None
        self._pool.release(connection)
        watch.waker.wake()

    def _lose_read(self, watch: BatchWatch) -> None:
        self._drop_read(watch)
        watch.waker.wake()

    def _drop_read(self, watch: BatchWatch) -> None:
        connection, watch.connection = watch.connection, None
        if connection is not None:
            self._give_back(connection, watch)

    def forget(self, watch: JobWatch | BatchWatch) -> None:
        """Unsubscribe from what only this watch has listened to."""
        if isinstance(watch, BatchWatch):
            self._drop_read(watch)
            return
        unheard: list[bytes] = []
        for channel in watch.channels:
            subscribers = self._subscribers.get(channel, set())
            subscribers.discard(watch)
            if not subscribers:
                self._subscribers.pop(channel, None)
                unheard.append(channel)
        for at in range(0, len(unheard), SUBSCRIBED_AT_ONCE):
            self._send(("UNSUBSCRIBE", *unheard[at : at + SUBSCRIBED_AT_ONCE]))

    def _give_back(self, connection: Any, registered_as: object) -> None:
        """Close a connection that still has an answer to come, and give it back to the pool."""
        for key in list(self._selector.get_map().values()):
            if key.data is registered_as:
                self._selector.unregister(key.fileobj)
        connection.disconnect()
        self._pool.release(connection)
