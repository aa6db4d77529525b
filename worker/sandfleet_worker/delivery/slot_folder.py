"""The lock files of a host's slots in one folder, which its workers share.

Every lock is a ``flock``, which the kernel drops with the process, so a ``kill -9`` frees what the
worker held. The folder has three kinds of files:

    gate           locked for microseconds by the worker that reads or changes the rest
    slot-<n>       locked while a job runs; holds the bytes of memory that the job reserves
    member-<name>  one a worker, locked for its life; holds its cap, since when its first waiter
                   waits (monotonic ns, 0: none does), the host's memory, and the part that the
                   worker takes; behind them, where earlier releases do not read, the memory that
                   new jobs leave to its jobs that have waited without a slot

A worker that is stopped (SIGSTOP) while it holds the gate does not stop the host: others go on
without the gate. Slots still exclude each other then, one flock each. For that moment the order of
the waiters may suffer, and the count of slots while a greater cap is on its way out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import time
from typing import TYPE_CHECKING, NamedTuple

from sandfleet_worker.delivery.lock_files import is_free, lock_now, open_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

GATE = "gate"
MEMBER = "member-"
SLOT = "slot-"
RECORD_BYTES = 80
RESERVATION_BYTES = 24
GATE_SECONDS = 1.0
GATE_SECONDS_KNOWN_STUCK = 0.02
GATE_POLL_SECONDS = 0.0005
STALE_SECONDS = 1.0
"""A first waiter that has not polled for so long is passed over.

It is stopped, or its thread is stuck.
"""


class Member(NamedTuple):
    """The record of one live worker.

    `waiting_since` is 0 where no thread waits, or none that still polls.
    """

    cap: int
    waiting_since: int = 0
    memory_bytes: int = 0
    own_bytes: int = 0
    wanted_bytes: int = 0


class HeldFiles(NamedTuple):
    """One slot that is held: `fd` has its lock, `write_fd` is open for its reservation."""

    number: int
    fd: int
    write_fd: int


class SlotFolder:
    """The files of `folder` as one worker uses them.

    Not safe for threads but for `free`: a descriptor is shared by the threads of a process, and so
    is its flock. Methods other than `gate`, `free` and `close` are called by the holder of the
    gate.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._folder = folder
        self._prefix = f"{folder}/"  # text: with pathlib a system call costs twice as much
        self._gate_timeout = GATE_SECONDS
        self._gate_fd = open_file(folder / GATE)
        self.name = f"{MEMBER}{os.getpid()}-{secrets.token_hex(4)}"
        self._member_fd = -1
        self._own: dict[int, int] = {}
        """The slots that this worker holds, with the bytes that they reserve.

        Their files need no reading.
        """

    def join(self, member: Member) -> None:
        """Become a member of the host's workers."""
        self._member_fd = open_file(self._folder / self.name)
        fcntl.flock(self._member_fd, fcntl.LOCK_EX)
        self.write_member(member)

    def leave(self) -> None:
        """Be no member any more: this worker's cap counts no longer; held slots stay held."""
        (self._folder / self.name).unlink(missing_ok=True)
        os.close(self._member_fd)

    def close(self) -> None:
        """Close the gate's file; the last call."""
        os.close(self._gate_fd)

    @contextlib.contextmanager
    def gate(self) -> Iterator[None]:
        """Hold the gate. Where its holder must be stopped, go on without it."""
        is_ours = self._enter_gate()
        try:
            yield
        finally:
            if is_ours:
                fcntl.flock(self._gate_fd, fcntl.LOCK_UN)

    def _enter_gate(self) -> bool:
        deadline = time.monotonic() + self._gate_timeout
        while True:
            try:
                fcntl.flock(self._gate_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    self._gate_timeout = GATE_SECONDS_KNOWN_STUCK
                    return False
                time.sleep(GATE_POLL_SECONDS)
            else:
                self._gate_timeout = GATE_SECONDS
                return True

    def write_member(self, member: Member) -> None:
        """Write this worker's record; this wakes the waiters."""
        *first, wanted_bytes = map(str, member)
        text = " ".join(first).ljust(RECORD_BYTES) + wanted_bytes.ljust(RESERVATION_BYTES)
        os.pwrite(self._member_fd, text.encode(), 0)

    def touch_member(self) -> None:
        """Show that this worker's first waiter still polls; this wakes no one."""
        os.utime(self._member_fd)

    def list_names(self) -> list[str]:
        """Return the names of all files, for one hold of the gate."""
        return os.listdir(self._prefix)  # noqa: PTH208  fast

    def read_other_members(self, names: Iterable[str]) -> Iterator[Member]:
        """Read the files of the other live workers, and remove those of dead ones."""
        for name in names:
            if not name.startswith(MEMBER) or name == self.name:
                continue
            member = self._read_member(f"{self._prefix}{name}")
            if member is not None:
                yield member

    def _read_member(self, path: str) -> Member | None:
        """Read the file of another worker by one descriptor, since each job does so several times.

        Return None for one that is dead, whose file is removed, and for one that is just joining.
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # it has left without the gate
            return None
        try:
            if is_free(fd):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)  # noqa: PTH108  fast
                return None
            record = os.read(fd, RECORD_BYTES + RESERVATION_BYTES)
            words, wanted = record[:RECORD_BYTES].split(), record[RECORD_BYTES:].strip()
            # Two words: a worker of an older release. Any other number: the worker is just joining,
            # and one of us does not hold the gate.
            if len(words) not in {2, 4}:
                return None
            member = Member(*map(int, words))._replace(wanted_bytes=int(wanted or 0))
            # A waiter touches its file at each poll.
            is_stale = bool(member.waiting_since) and time.time() - os.fstat(fd).st_mtime > STALE_SECONDS
            return member._replace(waiting_since=0) if is_stale else member
        finally:
            os.close(fd)

    def take(self, cap: int, names: Iterable[str]) -> HeldFiles | None:
        """Lock the first free slot below `cap`, if there is one.

        Slots above `cap` that are still held since the cap was greater count, too.
        """
        locked = self._lock_free(cap, names)
        if locked is None:
            return None
        fd, number = locked
        try:
            # Truncated: a holder that was killed left its reservation.
            flags = os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC
            files = HeldFiles(number, fd, os.open(f"{self._prefix}{SLOT}{number}", flags))
        except OSError:
            os.close(fd)
            raise
        self._own[number] = 0
        return files

    def reserve(self, files: HeldFiles, memory_bytes: int) -> None:
        """Write how many bytes of memory the slot's job may use."""
        os.pwrite(files.write_fd, str(memory_bytes).ljust(RESERVATION_BYTES).encode(), 0)
        self._own[files.number] = memory_bytes

    def free(self, files: HeldFiles) -> None:
        """Free a slot; from any thread, and without the gate."""
        if self._own.pop(files.number, 0):
            os.ftruncate(files.write_fd, 0)
        os.close(files.fd)
        os.close(files.write_fd)  # after the lock: it wakes the others (IN_CLOSE_WRITE)

    def _lock_free(self, cap: int, names: Iterable[str]) -> tuple[int, int] | None:
        above = [number for number in _slot_numbers(names) if number >= cap]
        held_above = sum(1 for number in above if number in self._own or not self._remove_if_free(number))
        taken = 0
        found: tuple[int, int] | None = None
        try:
            for number in range(cap):
                if number in self._own:
                    taken += 1
                    continue
                fd = lock_now(f"{self._prefix}{SLOT}{number}")
                if fd is None:
                    taken += 1
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
        if found and taken + held_above >= cap:
            os.close(found[0])
            return None
        return found

    def sum_reserved(self, names: Iterable[str]) -> int:
        """Return how many bytes of memory the jobs of all held slots reserve."""
        own = self._own.copy()
        total = sum(own.values())
        for number in _slot_numbers(names):
            if number in own:
                continue
            try:
                fd = os.open(f"{self._prefix}{SLOT}{number}", os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:  # another worker removed it without the gate
                continue
            try:
                text = os.read(fd, RESERVATION_BYTES).strip()
                if text and not is_free(fd):
                    total += int(text)
            finally:
                os.close(fd)
        return total

    def count_held(self, names: Iterable[str]) -> int:
        """Return how many slots are held, by all workers."""
        others = [number for number in _slot_numbers(names) if number not in self._own]
        return len(self._own) + sum(self._is_held(number) for number in others)

    def _is_held(self, number: int) -> bool:
        try:
            fd = os.open(f"{self._prefix}{SLOT}{number}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not is_free(fd)
        finally:
            os.close(fd)

    def _remove_if_free(self, number: int) -> bool:
        path = self._folder / f"{SLOT}{number}"
        fd = lock_now(path)
        if fd is None:
            return False
        path.unlink(missing_ok=True)
        os.close(fd)
        return True


def _slot_numbers(names: Iterable[str]) -> list[int]:
    return [int(name.removeprefix(SLOT)) for name in names if name.startswith(SLOT)]
