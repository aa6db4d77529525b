"""Tells when files in a folder are written, or closed by a writer.

It is inotify(7), which Python's library lacks.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# linux/inotify.h
IN_MODIFY, IN_CLOSE_WRITE = 0x2, 0x8
READ_BYTES = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


class FolderWatch:
    """A watch of a folder: `fd` is readable from the next such event on, and until `drain`.

    `fd` is None where the host has no watch or descriptor left.
    """

    def __init__(self, folder: Path) -> None:
        self.fd: int | None = None
        # IN_CLOEXEC and IN_NONBLOCK are the flags of open(2).
        fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            return
        if _libc.inotify_add_watch(fd, os.fsencode(folder), IN_MODIFY | IN_CLOSE_WRITE) < 0:
            os.close(fd)
            return
        self.fd = fd

    def drain(self) -> None:
        """Forget the events so far."""
        if self.fd is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self.fd, READ_BYTES)

    def close(self) -> None:
        """Watch no more."""
        fd, self.fd = self.fd, None
        if fd is not None:
            os.close(fd)
