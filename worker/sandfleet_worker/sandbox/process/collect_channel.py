"""The requests by which the worker lists and reads files of a job that has ended, on init's pipes.

Little-endian. The worker asks on the control pipe; a path is absolute, after its u32 length.

    "L" u32 most entries, u32 deepest folder, path     list a folder; depth 1 is its own entries
    "G" u64 most bytes, path                           read a file, if it is no larger

Init answers on the status pipe:

    L   for each entry: u8 kind, u32 errno, u32 length, path below the folder. The kind is that of
        readdir(3), or "!" for a folder that was left out by errno, or "." for the end, whose errno
        is E2BIG if there were more entries than asked for
    G   u32 errno, u32 mode, u64 size. If errno is 0, parts follow: u32 length, bytes. The last part
        has no bytes, but u32 errno: ENODATA if the file got shorter
"""

from __future__ import annotations

import os
import select
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandfleet_worker.sandbox.process.pipes import CHUNK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.pipes import Pipes

REGULAR: Final = 8
UNKNOWN: Final = 0
LEFT_OUT: Final = ord("!")
_END: Final = ord(".")
_ENTRY: Final = struct.Struct("<BII")
_HEAD: Final = struct.Struct("<IIQ")
_NUMBER: Final = struct.Struct("<I")
_MAX_PATH_BYTES: Final = 4096


class CollectionBrokenError(Exception):
    """The collection cannot go on; the message says why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a listing: `kind` is that of readdir(3) or `LEFT_OUT`."""

    kind: int
    errno: int
    path: bytes


@dataclass(frozen=True, slots=True)
class FileHead:
    """The head of a file. Its bytes follow only if `errno` is 0."""

    errno: int
    mode: int
    size: int


class CollectChannel:
    """Lists and reads files of a sandbox whose job has ended, until `seconds` are over."""

    def __init__(self, pipes: Pipes, cancel: Cancellation, seconds: float) -> None:
        self._pipes, self._cancel, self._seconds = pipes, cancel, seconds
        self._deadline = time.monotonic() + seconds
        self._data, self._at = b"", 0
        self._left = 0
        # A job that was cancelled before its end is collected like any other.
        self._cancel_fd = None if cancel.is_set else cancel.open_fd()

    def close(self) -> None:
        """Stop to wait for a request to cancel; the pipes are the caller's."""
        self._cancel.close_fd()

    def list(self, folder: str, most: int, depth: int) -> Iterator[Entry]:
        """Yield the entries below `folder`, at the end one for a folder that cannot be listed.

        Raises:
            CollectionBrokenError: the time is over, or the sandbox has ended.
        """
        self._ask(b"L" + struct.pack("<II", most, depth), folder)
        for _ in range(2 * most + 3):  # a folder may be told twice: as an entry, and because it could not be read
            kind, errno, length = _ENTRY.unpack(self._take(_ENTRY.size))
            _trust(length < _MAX_PATH_BYTES)
            path = self._take(length)
            if kind != _END:
                yield Entry(kind, errno, path)
                continue
            if errno:
                yield Entry(LEFT_OUT, errno, b"")
            return
        _trust(False)

    def open(self, path: str, most: int) -> FileHead:
        """Ask for a file of at most `most` bytes. If its `errno` is 0, `read` has its bytes.

        Raises:
            CollectionBrokenError: as `list`.
        """
        self._ask(b"G" + struct.pack("<Q", most), path)
        head = FileHead(*_HEAD.unpack(self._take(_HEAD.size)))
        self._left = 0 if head.errno else head.size
        _trust(self._left <= most)
        return head

    def read(self) -> Iterator[bytes]:
        """Yield the bytes of the opened file.

        Raises:
            OSError: it cannot be read to its end; the channel is still good.
            CollectionBrokenError: as `list`.
        """
        while length := self._take_number():
            _trust(length <= self._left)
            self._left -= length
            while length:
                part = self._take_some(length)
                length -= len(part)
                yield part
        if error := self._take_number():
            raise OSError(error, os.strerror(error))
        _trust(not self._left)

    def check(self) -> None:
        """Raise if the time is over or the job is cancelled.

        Raises:
            CollectionBrokenError: it is.
        """
        if self._cancel_fd is not None and self._cancel.is_set:
            raise CollectionBrokenError(f"the collection was ended: {self._cancel.message}")
        if time.monotonic() >= self._deadline:
            raise CollectionBrokenError(f"the collection took longer than {self._seconds:g} s")

    def _ask(self, request: bytes, path: str) -> None:
        data = os.fsencode(path)
        rest = request + _NUMBER.pack(len(data)) + data
        while rest:
            try:
                rest = rest[os.write(self._pipes.control, rest) :]
            except BlockingIOError:
                self._wait(self._pipes.control, select.POLLOUT)
            except BrokenPipeError as error:
                raise CollectionBrokenError(_SANDBOX_GONE) from error

    def _take_number(self) -> int:
        number: int = _NUMBER.unpack(self._take(_NUMBER.size))[0]
        return number

    def _take(self, size: int) -> bytes:
        while len(self._data) - self._at < size:
            self._data, self._at = self._data[self._at :] + self._receive(), 0
        self._at += size
        return self._data[self._at - size : self._at]

    def _take_some(self, most: int) -> bytes:
        if self._at == len(self._data):
            self._data, self._at = self._receive(), 0
        part = self._data[self._at : self._at + most]
        self._at += len(part)
        return part

    def _receive(self) -> bytes:
        while True:
            self._wait(self._pipes.status, select.POLLIN)
            try:
                data = os.read(self._pipes.status, CHUNK_BYTES)
            except BlockingIOError:
                continue
            if not data:
                raise CollectionBrokenError(_SANDBOX_GONE)
            return data

    def _wait(self, fd: int, event: int) -> None:
        """Wait until `fd` is ready."""
        poll = select.poll()
        poll.register(fd, event)
        if self._cancel_fd is not None:
            poll.register(self._cancel_fd, select.POLLIN)
        ready: list[tuple[int, int]] = []
        while not any(found == fd for found, _ in ready):
            self.check()
            ready = poll.poll(max(1.0, (self._deadline - time.monotonic()) * 1000))


def _trust(is_sound: bool) -> None:  # noqa: FBT001
    """End the collection where init gives an impossible answer: the job may have become init."""
    if not is_sound:
        raise CollectionBrokenError("the sandbox does not answer as it should: its files are not trusted")


_SANDBOX_GONE: Final = "the sandbox ended before its files were collected"
