"""Slots for running sandboxes, counted over the whole host: its workers share them through lock files in one folder.

Every lock is a ``flock``, which the kernel drops with the process, so a ``kill -9`` frees what the worker held. Each worker has a
member file, locked for its life, that says its cap and since when its first waiter waits: the greatest cap of the live members
counts, and a free slot goes to whoever on the host has waited longest.

A holder of a slot also has its file open for writing, and nobody else has. Its release, or its death, is thus an event of the
folder (inotify(7), IN_CLOSE_WRITE) that wakes who waits. Looking for a free slot opens files for reading only, and wakes nobody.

The file of a held slot also says how many bytes of memory its job may use: its reservation. A member file says how much memory
its worker found on the host, and what the worker takes of it. What jobs may reserve together is the smallest such memory, less
what all live members take. A reservation counts only while its slot's lock is held, so it goes with its worker, too.

Invariant: slots are taken, member files written, read or removed, and reservations summed and made, only by the holder of the
gate lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import select
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from sandfleet_worker.delivery.folder_watch import FolderWatch
from sandfleet_worker.delivery.lock_files import is_free, lock_now, open_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from types import TracebackType

GATE = "gate"
MEMBER = "member-"
SLOT = "slot-"
RECORD_BYTES = 80
RESERVATION_BYTES = 24
POLL_SECONDS = 0.003
"""How far apart two looks of the first waiter are at least, while other workers live on the host; without a watch, always."""
POLL_SECONDS_PER_SLOT = 0.00005
POLL_SECONDS_ALONE = 0.05
POLL_SECONDS_WATCHING = 0.25
"""How often the first waiter looks where the folder's events wake it. Less than `STALE_SECONDS`: a look is its sign of life."""
GATE_SECONDS = 1.0
GATE_SECONDS_KNOWN_STUCK = 0.02
GATE_POLL_SECONDS = 0.0005
STALE_SECONDS = 1.0
"""A first waiter that has not looked for so long has no turn: its process is stopped, or its thread is stuck."""


class Slot:
    """One held slot; leaving the context frees it."""

    def __init__(self, slots: HostSlots, fd: int, write_fd: int, number: int) -> None:
        self._slots, self._fd, self._write_fd, self.number = slots, fd, write_fd, number
        self._reserved = 0

    def __enter__(self) -> Self:
        """Return the slot, which is held already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Free the slot."""
        self.release()

    def reserve(self, memory_bytes: int) -> bool:
        """Reserve memory of the host for the slot's job, instead of what it had; return False where there is not so much."""
        with self._slots._looked_at() as memory:  # noqa: SLF001  the two are one mechanism
            if self._fd < 0 or (memory is not None and memory_bytes > memory.free + self._reserved):
                return False
            os.pwrite(self._write_fd, str(memory_bytes).ljust(RESERVATION_BYTES).encode(), 0)
            self._reserved = memory_bytes
            return True

    def release(self, *, was_used: bool = True) -> None:
        """Free the slot, once; `was_used` says that its job makes room, for `HostSlots.wait_for_release`."""
        if self.drop():
            self._slots._note_release(is_end=was_used)  # noqa: SLF001

    def drop(self) -> bool:
        """Free the slot, and tell only the other workers of the host; return whether it was held."""
        fd, self._fd = self._fd, -1
        if fd < 0:
            return False
        if self._reserved:
            os.ftruncate(self._write_fd, 0)
        os.close(fd)
        os.close(self._write_fd)  # after the lock: it wakes the others
        return True


@dataclass(eq=False)
class _Waiter:
    """A thread in line: since when (monotonic ns, one clock for the host) and the eventfd that wakes it."""

    since: int = field(default_factory=time.monotonic_ns)
    wake_fd: int = field(default_factory=lambda: os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


@dataclass(frozen=True)
class _Member:
    """What another live worker says about itself; `waiting_since` 0 is nobody, or nobody who still looks."""

    cap: int
    waiting_since: int
    memory_bytes: int = 0
    own_bytes: int = 0


class HostMemory(NamedTuple):
    """Bytes of memory that jobs on this host may reserve together, and how many of them no job reserves.

    `free` is below 0 where the budget became smaller meanwhile.
    """

    budget: int
    free: int


class HostSlots:
    """The host's slots as one worker sees them; safe for threads. `cap` is what this worker was configured with.

    `memory_bytes` is what this worker was told the host has for jobs and workers (0: nobody said, memory is not counted), and
    `own_bytes` what of that the worker takes itself.
    """

    def __init__(self, folder: Path, cap: int, memory_bytes: int = 0, own_bytes: int = 0) -> None:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._folder, self._cap = folder, cap
        self._memory_bytes, self._own_bytes = memory_bytes, own_bytes
        self._released = threading.Event()
        self.last_memory: HostMemory | None = None
        """The last result of `read_memory`, from any thread."""
        self._line: deque[_Waiter] = deque()
        self._lock = threading.Lock()
        self._gate_patience = GATE_SECONDS
        self._gate_fd = open_file(folder / GATE)
        self._told = -1
        self._watch = FolderWatch(folder)
        with self._gate():
            self._name = f"{MEMBER}{os.getpid()}-{secrets.token_hex(4)}"
            self._member_fd = open_file(folder / self._name)
            fcntl.flock(self._member_fd, fcntl.LOCK_EX)
            self._tell(0)

    def close(self) -> None:
        """Leave: this worker's cap counts no more; slots that are still held stay held."""
        with self._gate():
            (self._folder / self._name).unlink(missing_ok=True)
            os.close(self._member_fd)
        self._watch.close()
        os.close(self._gate_fd)

    def read_memory(self) -> HostMemory | None:
        """Return the memory of the host as it is now; None where nobody said how much there is."""
        with self._looked_at() as memory:
            self.last_memory = memory
            return memory

    def take_less(self, own_bytes: int) -> None:
        """Say that this worker takes `own_bytes` of the host's memory for itself from now on."""
        with self._lock, self._gate():
            self._own_bytes = own_bytes
            self._write(self._told)

    def expect_release(self) -> None:
        """Note only releases from now on."""
        self._released.clear()

    def wait_for_release(self, timeout_seconds: float) -> None:
        """Wait until a slot of this worker that was used has been freed since `expect_release`, or for so long."""
        self._released.wait(timeout_seconds)

    @contextlib.contextmanager
    def _looked_at(self) -> Iterator[HostMemory | None]:
        """Hold the gate, and say what memory there is."""
        if not self._memory_bytes:
            yield None
            return
        with self._lock, self._gate():
            members = list(self._other_members())
            known = [self._memory_bytes, *(other.memory_bytes for other in members if other.memory_bytes)]
            budget = max(0, min(known) - self._own_bytes - sum(other.own_bytes for other in members))
            yield HostMemory(budget, budget - self._sum_reserved())

    def _sum_reserved(self) -> int:
        total = 0
        for number in self._slot_numbers():
            try:
                fd = os.open(self._folder / f"{SLOT}{number}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # the gate was gone round
                continue
            try:
                text = os.read(fd, RESERVATION_BYTES).strip()
                if text and not is_free(fd):
                    total += int(text)
            finally:
                os.close(fd)
        return total

    def acquire(self, cancel_fd: int | None = None, on_look: Callable[[], None] = lambda: None) -> Slot | None:
        """Wait for a slot and return it, or None when `cancel_fd` became readable first; `on_look` hears of each look."""
        waiter = _Waiter()
        with self._lock:
            self._line.append(waiter)
        try:
            while True:
                slot, pause, spacing = self._try(waiter)
                on_look()
                if slot is not None:
                    return slot
                if not self._pause(waiter, cancel_fd, pause, spacing):
                    return None
        finally:
            self._leave(waiter)

    def _pause(self, waiter: _Waiter, cancel_fd: int | None, seconds: float | None, spacing_seconds: float) -> bool:
        """Wait so long, or until it is worth a look; return False when `cancel_fd` is readable."""
        poller = select.poll()
        poller.register(waiter.wake_fd, select.POLLIN)
        watch_fd = self._watch.fd if seconds is not None else None  # the first in line only: it drains it
        for fd in (cancel_fd, watch_fd):
            if fd is not None:
                poller.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poller.poll(None if seconds is None else seconds * 1000)]
        if cancel_fd in ready:
            return False
        if waiter.wake_fd in ready:
            os.eventfd_read(waiter.wake_fd)
        elif watch_fd in ready:
            time.sleep(spacing_seconds)  # the host's jobs may be short: no look for each of them
            self._watch.drain()
        return True

    def _try(self, waiter: _Waiter) -> tuple[Slot | None, float | None, float]:
        """Try for a slot; where there is none yet, return how long to pause (None: until woken), and how far apart looks are."""
        with self._lock:
            if self._line[0] is not waiter:
                return None, None, 0.0
            with self._gate():
                others = list(self._other_members())
                cap = max([self._cap, *(other.cap for other in others)])
                is_my_turn = all(not 0 < other.waiting_since < waiter.since for other in others)
                taken = self._take(cap) if is_my_turn else None
                slot = self._hold(*taken) if taken else None
                try:
                    self._tell(0 if slot else waiter.since)
                except OSError:
                    if slot:
                        slot.drop()
                    raise
        spacing = POLL_SECONDS + cap * POLL_SECONDS_PER_SLOT if others else POLL_SECONDS_ALONE
        return slot, spacing if self._watch.fd is None else POLL_SECONDS_WATCHING, spacing

    def _hold(self, fd: int, number: int) -> Slot:
        """Return the slot whose lock is `fd`."""
        try:
            # Truncated: a holder that was killed left its reservation.
            write_fd = os.open(self._folder / f"{SLOT}{number}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC)
        except OSError:
            os.close(fd)
            raise
        return Slot(self, fd, write_fd, number)

    def _leave(self, waiter: _Waiter) -> None:
        with self._lock:
            was_first = self._line[0] is waiter
            self._line.remove(waiter)
            since = self._line[0].since if self._line else 0
            if was_first and since != self._told:
                with self._gate():
                    self._tell(since)
        os.close(waiter.wake_fd)
        self._wake_first()

    def _note_release(self, *, is_end: bool) -> None:
        if is_end:
            self._released.set()
        self._wake_first()

    def _wake_first(self) -> None:
        with self._lock:
            if self._line:
                os.eventfd_write(self._line[0].wake_fd, 1)

    def _take(self, cap: int) -> tuple[int, int] | None:
        """Lock the first free slot below `cap`, counting those that are held above it since the cap was greater."""
        held_above = sum(1 for number in self._slot_numbers() if number >= cap and not self._remove_if_free(number))
        held = 0
        found: tuple[int, int] | None = None
        try:
            for number in range(cap):
                fd = lock_now(self._folder / f"{SLOT}{number}")
                if fd is None:
                    held += 1
                elif found is None:
                    found = fd, number
                else:
                    os.close(fd)
                if found and not held_above:
                    return found
        except OSError:  # no descriptor is left
            if found:
                os.close(found[0])
            raise
        if found and held + held_above >= cap:
            os.close(found[0])
            return None
        return found

    def _slot_numbers(self) -> list[int]:
        return [int(name.removeprefix(SLOT)) for name in os.listdir(self._folder) if name.startswith(SLOT)]  # noqa: PTH208  fast

    def _remove_if_free(self, number: int) -> bool:
        path = self._folder / f"{SLOT}{number}"
        fd = lock_now(path)
        if fd is None:
            return False
        path.unlink(missing_ok=True)
        os.close(fd)
        return True

    def _other_members(self) -> Iterator[_Member]:
        for name in os.listdir(self._folder):  # noqa: PTH208  fast
            if not name.startswith(MEMBER) or name == self._name:
                continue
            path = self._folder / name
            fd = lock_now(path)
            if fd is not None:  # its worker is dead
                path.unlink(missing_ok=True)
                os.close(fd)
                continue
            words = path.read_text().split()
            # Two words are a worker's of an older release. Any other number: it is being born, and the gate was gone round.
            if len(words) not in {2, 4}:
                continue
            cap, since, *memory = map(int, words)
            # A waiter writes its file each time that it looks.
            is_stale = time.time() - path.stat().st_mtime > STALE_SECONDS
            yield _Member(cap, 0 if is_stale else since, *memory)

    def _tell(self, waiting_since: int) -> None:
        if waiting_since == self._told:
            os.utime(self._member_fd)  # a sign of life that wakes nobody
            return
        self._told = waiting_since
        self._write(waiting_since)

    def _write(self, waiting_since: int) -> None:
        text = f"{self._cap} {waiting_since} {self._memory_bytes} {self._own_bytes}"
        os.pwrite(self._member_fd, text.ljust(RECORD_BYTES).encode(), 0)

    @contextlib.contextmanager
    def _gate(self) -> Iterator[None]:
        # A descriptor of this process is shared by its threads, and so is its flock: `_lock` keeps them apart,
        # and __init__ and close run without other threads.
        is_ours = self._enter_gate()
        try:
            yield
        finally:
            if is_ours:
                fcntl.flock(self._gate_fd, fcntl.LOCK_UN)

    def _enter_gate(self) -> bool:
        """Take the gate, or go round it where its holder must be stopped: a frozen worker may not freeze the host.

        The gate is held for microseconds. Without it the slots themselves still exclude each other, one flock each; what
        may suffer for the moment is the order of the line, and the count while a greater cap is on its way out.
        """
        deadline = time.monotonic() + self._gate_patience
        while True:
            try:
                fcntl.flock(self._gate_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._gate_patience = GATE_SECONDS_KNOWN_STUCK
                    return False
                time.sleep(GATE_POLL_SECONDS)
            else:
                self._gate_patience = GATE_SECONDS
                return True
