"""The lock of the one process that writes a history file, with its sign of life in it."""

from __future__ import annotations

import fcntl
import os
from typing import TYPE_CHECKING, Self

from sandfleet.history.heartbeat import SIZE, encode_heartbeat, lock_path

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet.history.heartbeat import Heartbeat


class WriterLock:
    """The lock of the history `file`; it goes with its process."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, file: Path) -> Self | None:
        """Take the lock; None if another process has it.

        Raises:
            OSError: its file cannot be made or written.
        """
        file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
        descriptor = os.open(lock_path(file), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its blocks are there from now on: a sign of life is written on a full disk, too.
            os.posix_fallocate(descriptor, 0, SIZE)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        return cls(descriptor)

    def write(self, found: Heartbeat) -> None:
        """Write the sign of life."""
        os.pwrite(self._descriptor, encode_heartbeat(found), 0)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)
