"""The memory of a host that its jobs reserve."""

from __future__ import annotations

from typing import NamedTuple


class HostMemory(NamedTuple):
    """Bytes that jobs may reserve together, and free ones: below 0 where the budget has shrunk.

    `wanted` bytes are kept for jobs that gave their slot back while they waited, and need one again.
    """

    budget: int
    free: int
    wanted: int = 0

    @property
    def free_for_new(self) -> int:
        """Bytes that new jobs may reserve."""
        return max(0, self.free - self.wanted)
