"""The worker's ends of a sandbox's pipes, and reading and writing them without waiting."""

from __future__ import annotations

import os
from dataclasses import dataclass

CHUNK_BYTES = 1 << 20
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


class Feeder:
    """Writes `data` into a non-blocking pipe, a part whenever the pipe takes one."""

    def __init__(self, fd: int, data: bytes) -> None:
        self._fd, self._rest = fd, memoryview(data)

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
        return not self._rest


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
