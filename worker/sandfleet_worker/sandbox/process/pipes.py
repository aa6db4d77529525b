"""The worker's ends of a sandbox's pipes, and reading and writing them without waiting."""

from __future__ import annotations

import contextlib
import fcntl
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

CHUNK_BYTES = 1 << 20
PIPE_BYTES = 1 << 20
NAMES = ("control", "status", "stdin", "stdout", "stderr")


@dataclass
class Pipes:
    """The worker's ends of a sandbox's pipes, all non-blocking; -1 is closed."""

    control: int
    status: int
    stdin: int
    stdout: int
    stderr: int

    def close(self, name: str) -> None:
        """Close one end, once."""
        fd = getattr(self, name)
        if fd >= 0:
            setattr(self, name, -1)
            os.close(fd)

    def close_all(self) -> None:
        """Close every end that is open."""
        for name in NAMES:
            self.close(name)


def _no_parts() -> Generator[bytes]:
    yield from ()


class Feeder:
    """Writes `data` into a non-blocking pipe, a part whenever the pipe takes one.

    Then writes the parts of `more`, and asks for each only when the one before is written.
    """

    def __init__(self, fd: int, data: bytes, more: Generator[bytes] | None = None) -> None:
        self._fd, self._rest, self._more = fd, memoryview(data), more or _no_parts()

    def feed(self) -> bool:
        """Write as much as the pipe takes now; return whether nothing is left to write.

        A reader that closed its end takes nothing more. It may do so: a program need not read its
        stdin, and the death of a sandbox is told by its pidfd.
        """
        try:
            self._rest = self._rest[os.write(self._fd, self._rest[:CHUNK_BYTES]) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        while not self._rest:
            part = next(self._more, None)
            if part is None:
                return True
            self._rest = memoryview(part)
        return False

    def close(self) -> None:
        """Ask for no more parts, and close the file that they come from."""
        self._more.close()


def widen(fd: int, size_bytes: int) -> None:
    """Let a pipe hold `size_bytes`. It saves wake-ups; the default of 64 KiB works, too."""
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, size_bytes)


def read_available(fd: int, max_bytes: int) -> bytes | None:
    """Return the bytes that are in a pipe: empty at its end of file, None while there is nothing.

    None also if `fd` is -1.
    """
    if fd < 0:
        return None
    try:
        return os.read(fd, max_bytes)
    except BlockingIOError:
        return None
