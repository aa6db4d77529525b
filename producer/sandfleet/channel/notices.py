"""Notices about jobs that end: one thread a process waits for them, for all of its watches.

``finish.lua`` publishes each result on the channel of its key and adds an entry to its batch's
stream. The thread has one pub/sub connection for all watched jobs, and one blocking XREAD a watched
batch. A notice can get lost with its connection. So a wait that is woken asks Redis which jobs have
ended, and a lost connection counts as a notice for all of its jobs.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from sandfleet.channel.stream_reads import StreamReads
from sandfleet.channel.subscription import Subscription
from sandfleet.channel.watches import BatchWatch, JobWatch, LiveWatch, StreamWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.waker import Waker

AnyWatch: TypeAlias = "JobWatch | StreamWatch[Any]"
IDLE_SECONDS: Final = 5.0
"""The thread and its connection end when there was no watch for so long."""
JOIN_SECONDS: Final = 5.0
CHECK_SECONDS: Final = 1.0
"""How often the thread checks its deadlines while nothing happens."""


class Notices:
    """The watches of one process, and the thread that serves them while there are any."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        # Reentrant: the garbage collector closes an abandoned wait in whatever thread it runs in.
        self._lock = threading.RLock()
        self._thread: NoticeThread | None = None

    def watch_jobs(self, job_ids: Sequence[str], waker: Waker) -> JobWatch:
        """Subscribe to the notices of `job_ids`.

        `take` returns None once when the subscription has begun.
        """
        watch = JobWatch(self, job_ids, waker)
        self.ask(lambda thread: thread.subscription.add(watch), watch)
        return watch

    def watch_batch(self, name: str, waker: Waker) -> BatchWatch:
        """Watch a batch; nothing is read before the first `arm`."""
        watch = BatchWatch(self, name, waker)
        self.ask(lambda _: None, watch)
        return watch

    def watch_live(self, job_id: str, waker: Waker) -> LiveWatch:
        """Watch a job's live output; nothing is read before the first `arm`."""
        watch = LiveWatch(self, job_id, waker)
        self.ask(lambda _: None, watch)
        return watch

    def has(self, watch: AnyWatch) -> bool:
        """Whether the watch is served."""
        thread = self._thread
        return thread is not None and watch in thread.watches

    def ask(self, request: Callable[[NoticeThread], None], watch: AnyWatch | None = None) -> None:
        """Call `request` in the thread; start one for a new `watch`."""
        if self._pid != os.getpid():
            _threads_of_parents.append(self._thread)  # kept, so that its sockets are not closed here
            self._reset()
        with self._lock:
            if self._thread is None or not self._thread.accept(watch):
                if watch is None:
                    return
                self._thread = NoticeThread(self._connections)
                self._thread.accept(watch)
                self._thread.start()
            self._thread.ask(request)

    def raise_error(self, error: Exception | None) -> None:
        """Raise an error that Redis has answered to a watch, as `FleetUnavailable`."""
        if error is not None:
            with self._connections.guard():
                raise error

    def drop(self, watch: AnyWatch) -> None:
        """Stop serving the watch."""
        thread = self._thread
        if thread is not None and watch in thread.watches:
            thread.watches.discard(watch)
            thread.ask(lambda thread: thread.forget(watch))

    def close(self) -> None:
        """End the thread and its connections; waits are woken, and may watch again."""
        if self._pid != os.getpid():
            return
        with self._lock:
            thread, self._thread = self._thread, None
        if thread is not None:
            thread.stop()


_threads_of_parents: list[Any] = []


class NoticeThread(threading.Thread):
    """Waits for notices.

    `accept`, `ask` and `stop` are for other threads, all else happens in this one.
    """

    def __init__(self, connections: Connections) -> None:
        super().__init__(name="sandfleet-notices", daemon=True)
        self.watches: set[AnyWatch] = set()
        self._lock = threading.RLock()  # reentrant: see `Notices`
        self._is_over = self._is_stopping = False
        self._requests: deque[Callable[[NoticeThread], None]] = deque()
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._wake_receiver.setblocking(False)
        self._wake_sender.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_receiver, selectors.EVENT_READ, None)
        pool: Any = connections.redis.connection_pool
        self.subscription = Subscription(pool, self._selector)
        self.stream_reads = StreamReads(pool, self._selector)

    def accept(self, watch: AnyWatch | None) -> bool:
        """Serve a watch; return False if this thread has ended or is about to."""
        with self._lock:
            if self._is_over:
                return False
            if watch is not None:
                self.watches.add(watch)
            return True

    def ask(self, request: Callable[[NoticeThread], None]) -> None:
        """Call `request` in this thread soon."""
        with self._lock:
            if not self._is_over:
                self._requests.append(request)
                self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # the buffer is full: the thread wakes anyway
            self._wake_sender.send(b"x")

    def stop(self) -> None:
        """End this thread, and wait for that."""
        with self._lock:
            if self._is_over:
                return
            self._is_stopping = True
            self._wake()
        if threading.current_thread() is not self:
            self.join(JOIN_SECONDS)

    def run(self) -> None:
        """Serve watches until there was none for `IDLE_SECONDS`."""
        idle_since = time.monotonic()
        try:
            while not self._is_stopping:
                self._serve()
                now = time.monotonic()
                if self.watches:
                    idle_since = now
                elif now - idle_since >= IDLE_SECONDS and self._end_if_idle():
                    return
        finally:
            self._end()

    def _serve(self) -> None:
        """Wait for an event, and handle it."""
        for key, _ in self._selector.select(CHECK_SECONDS):
            if key.data is None:
                self._wake_receiver.recv(4096)
            else:
                key.data()
        while self._requests:
            self._requests.popleft()(self)
        now = time.monotonic()
        self.subscription.keep_alive(now)
        self.stream_reads.drop_overdue(now)

    def _end_if_idle(self) -> bool:
        with self._lock:
            self._is_over = not self.watches and not self._requests
            return self._is_over

    def _end(self) -> None:
        with self._lock:
            self._is_over = True
            watches, self.watches = self.watches, set()
        self.subscription.close()
        self.stream_reads.close()
        for watch in watches:
            watch.waker.wake()
        self._selector.close()
        self._wake_receiver.close()
        self._wake_sender.close()

    def forget(self, watch: AnyWatch) -> None:
        """Read nothing more for this watch."""
        if isinstance(watch, StreamWatch):
            self.stream_reads.stop(watch)
        else:
            self.subscription.remove(watch)
