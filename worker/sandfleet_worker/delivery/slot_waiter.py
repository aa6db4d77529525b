"""One thread that waits for a slot of the host."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field


@dataclass(eq=False)
class Waiter:
    """A waiting thread: since when (monotonic ns, one clock for the host), and its eventfd."""

    since: int = field(default_factory=time.monotonic_ns)
    wake_fd: int = -1

    def open(self) -> None:
        """Make the eventfd, once: most threads get a slot at their first try and need none."""
        if self.wake_fd < 0:
            self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def wake(self) -> None:
        """Wake the thread; one that has not tried yet is awake."""
        if self.wake_fd >= 0:
            os.eventfd_write(self.wake_fd, 1)

    def close(self) -> None:
        """Close the eventfd."""
        if self.wake_fd >= 0:
            os.close(self.wake_fd)
