"""Slots for running sandboxes, counted over the whole host: its workers share them by `SlotFolder`.

The greatest cap of the live workers counts. A free slot goes to the waiter on the host that has
waited longest. (docs/decisions/0004-delivery.md says what that buys.)

A holder of a slot has its file open for writing, and nobody else has. So its release, or its death,
is an event of the folder (inotify(7), IN_CLOSE_WRITE) that wakes the waiters. A poll opens files
for reading only, and wakes no one.

The file of a held slot says how many bytes of memory its job may use: its reservation. Jobs may
reserve together the smallest memory that a live worker found on the host, less what all of them
take themselves. A reservation counts only while its slot's lock is held, so it goes with its
worker, too.

Invariant: slots are taken, member files written, read or removed, and reservations summed and made,
only by the holder of the gate.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Self

from sandfleet_worker.delivery.folder_watch import FolderWatch
from sandfleet_worker.delivery.host_memory import HostMemory
from sandfleet_worker.delivery.slot_folder import Member, SlotFolder
from sandfleet_worker.delivery.slot_waiter import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

    from sandfleet_worker.delivery.slot_folder import HeldFiles

POLL_SECONDS = 0.003
"""Poll interval of the first waiter without a watch.

With one, it is the least time between two polls while other workers live.
"""
POLL_SECONDS_PER_SLOT = 0.00005
POLL_SECONDS_ALONE = 0.05
POLL_SECONDS_WATCHING = 0.25
"""Poll interval of the first waiter where events of the folder wake it.

Less than `STALE_SECONDS`: a poll is its sign of life.
"""


class Slot:
    """One held slot; leaving the context frees it."""

    def __init__(self, slots: HostSlots, files: HeldFiles) -> None:
        self._slots = slots
        self._files: HeldFiles | None = files
        self.number = files.number
        self._reserved = 0

    def __enter__(self) -> Self:
        """Return the slot, which is held already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the slot."""
        self.release()

    def reserve(self, memory_bytes: int, *, is_new: bool = False) -> bool:
        """Reserve memory for the slot's job instead of what it had.

        Return False where there is not so much. With `is_new` it also leaves `HostMemory.wanted`.
        """
        with self._slots._measured() as memory:  # noqa: SLF001  the two are one mechanism
            files = self._files
            if files is None:
                return False
            if memory is not None and memory_bytes > memory.free + self._reserved - is_new * memory.wanted:
                return False
            self._slots._files.reserve(files, memory_bytes)  # noqa: SLF001
            self._reserved = memory_bytes
            return True

    def release(self, *, was_used: bool = True) -> None:
        """Free the slot, once.

        `was_used`: a job ended with it, see `HostSlots.wait_for_release`.
        """
        if self.drop():
            self._slots._note_release(is_end=was_used)  # noqa: SLF001

    def drop(self) -> bool:
        """Free the slot and wake only other workers of the host; return whether it was held."""
        files, self._files = self._files, None
        if files is None:
            return False
        self._slots._files.free(files)  # noqa: SLF001
        return True


class HostSlots:
    """The host's slots as one worker sees them; safe for threads.

    `cap` is the worker's setting. `memory_bytes` is the host's memory for jobs and workers (0:
    unknown, memory is not counted), and `own_bytes` the part that this worker takes.
    """

    def __init__(self, folder: Path, cap: int, memory_bytes: int = 0, own_bytes: int = 0) -> None:
        self._me = Member(cap, 0, memory_bytes, own_bytes)
        self._released = threading.Event()
        self.last_memory: HostMemory | None = None
        """The last result of `read_memory` or of an `acquire` that took a slot; thread-safe."""
        self._waiters: deque[Waiter] = deque()
        self._lock = threading.Lock()
        self._files = SlotFolder(folder)
        self._watch = FolderWatch(folder)
        with self._files.gate():
            self._files.join(self._me)

    def close(self) -> None:
        """Leave: this worker's cap counts no more; slots that are still held stay held."""
        with self._files.gate():
            self._files.leave()
        self._watch.close()
        self._files.close()

    def read_memory(self) -> HostMemory | None:
        """Return the memory of the host as it is now; None where it is not counted."""
        with self._measured() as memory:
            self.last_memory = memory
            return memory

    def count(self) -> tuple[int, int]:
        """Return how many slots the host has, and how many of them are held now."""
        with self._lock, self._files.gate():
            names = self._files.list_names()
            cap = max([self._me.cap, *(other.cap for other in self._files.read_other_members(names))])
            return cap, self._files.count_held(names)

    def take_less(self, own_bytes: int) -> None:
        """Say that this worker takes `own_bytes` of the host's memory for itself from now on."""
        with self._lock, self._files.gate():
            self._me = self._me._replace(own_bytes=own_bytes)
            self._files.write_member(self._me)

    @contextlib.contextmanager
    def wanting(self, memory_bytes: int) -> Iterator[None]:
        """Have the new jobs of all the host's workers leave so much memory, until the block ends."""
        self._want(memory_bytes)
        try:
            yield
        finally:
            self._want(-memory_bytes)

    def _want(self, more_bytes: int) -> None:
        if more_bytes and self._me.memory_bytes:
            with self._lock, self._files.gate():
                wanting = self._me._replace(wanted_bytes=self._me.wanted_bytes + more_bytes)
                self._files.write_member(wanting)
                self._me = wanting

    def expect_release(self) -> None:
        """Note only releases from now on."""
        self._released.clear()

    def wait_for_release(self, timeout_seconds: float) -> None:
        """Wait until a slot of this worker that was used has been freed.

        Only releases since `expect_release` count; the wait ends after `timeout_seconds`.
        """
        self._released.wait(timeout_seconds)

    @contextlib.contextmanager
    def _measured(self) -> Iterator[HostMemory | None]:
        """Hold the gate, and say what memory there is."""
        if not self._me.memory_bytes:
            yield None
            return
        with self._lock, self._files.gate():
            names = self._files.list_names()
            yield self._sum_memory(list(self._files.read_other_members(names)), names)

    def _sum_memory(self, others: list[Member], names: list[str]) -> HostMemory:
        me = self._me
        known = [me.memory_bytes, *(other.memory_bytes for other in others if other.memory_bytes)]
        budget = max(0, min(known) - me.own_bytes - sum(other.own_bytes for other in others))
        wanted = me.wanted_bytes + sum(other.wanted_bytes for other in others)
        return HostMemory(budget, budget - self._files.sum_reserved(names), wanted)

    def acquire(self, cancel_fd: int | None = None, on_poll: Callable[[], None] = lambda: None) -> Slot | None:
        """Wait for a slot and return it, or None when `cancel_fd` became readable first.

        `on_poll` is called at each poll.
        """
        waiter = Waiter()
        with self._lock:
            self._waiters.append(waiter)
        try:
            while True:
                slot, pause, spacing = self._try(waiter)
                on_poll()
                if slot is not None:
                    return slot
                if not self._pause(waiter, cancel_fd, pause, spacing):
                    return None
        finally:
            self._leave(waiter)

    def _pause(self, waiter: Waiter, cancel_fd: int | None, seconds: float | None, spacing_seconds: float) -> bool:
        """Wait until it is time to poll again; return False when `cancel_fd` is readable."""
        poller = select.poll()
        poller.register(waiter.wake_fd, select.POLLIN)
        watch_fd = self._watch.fd if seconds is not None else None  # the first waiter only: it drains it
        for fd in (cancel_fd, watch_fd):
            if fd is not None:
                poller.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(None if seconds is None else seconds * 1000)]
        if cancel_fd in ready:
            return False
        if waiter.wake_fd in ready:
            os.eventfd_read(waiter.wake_fd)
        elif watch_fd in ready:
            time.sleep(spacing_seconds)  # the host's jobs may be short: one poll for many of them
            self._watch.drain()
        return True

    def _try(self, waiter: Waiter) -> tuple[Slot | None, float | None, float]:
        """Try for a slot.

        Where there is none yet, return how long to pause (None: until woken), and the least time
        between two polls.
        """
        with self._lock:
            if self._waiters[0] is not waiter:
                waiter.open()
                return None, None, 0.0
            with self._files.gate():
                names = self._files.list_names()
                others = list(self._files.read_other_members(names))
                cap = max([self._me.cap, *(other.cap for other in others)])
                is_first = all(not 0 < other.waiting_since < waiter.since for other in others)
                files = self._files.take(cap, names) if is_first else None
                slot = Slot(self, files) if files else None
                try:
                    self._publish_wait(0 if slot else waiter.since)
                    if slot is None:
                        waiter.open()
                    elif self._me.memory_bytes:
                        self.last_memory = self._sum_memory(others, names)
                except OSError:
                    if slot:
                        slot.drop()
                    raise
        spacing = POLL_SECONDS + cap * POLL_SECONDS_PER_SLOT if others else POLL_SECONDS_ALONE
        return slot, spacing if self._watch.fd is None else POLL_SECONDS_WATCHING, spacing

    def _publish_wait(self, waiting_since: int) -> None:
        """Tell the other workers since when the first waiter of this one waits."""
        if waiting_since == self._me.waiting_since:
            if waiting_since:
                self._files.touch_member()
            return
        self._me = self._me._replace(waiting_since=waiting_since)
        self._files.write_member(self._me)

    def _leave(self, waiter: Waiter) -> None:
        with self._lock:
            was_first = self._waiters[0] is waiter
            self._waiters.remove(waiter)
            since = self._waiters[0].since if self._waiters else 0
            if was_first and since != self._me.waiting_since:
                with self._files.gate():
                    self._publish_wait(since)
        waiter.close()
        self._wake_first()

    def _note_release(self, *, is_end: bool) -> None:
        if is_end:
            self._released.set()
        self._wake_first()

    def _wake_first(self) -> None:
        with self._lock:
            if self._waiters:
                self._waiters[0].wake()
