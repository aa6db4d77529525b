"""Messages of endings that both a producer and a worker record."""

from __future__ import annotations

from typing import Final

CANCELLED: Final = "the job was cancelled"
CANCELLED_QUEUED: Final = "the job was cancelled before it started"
EXPIRED: Final = "no worker took the job within its queue_ttl: check that workers run, and that a host fits the job"
OUTPUT_DROPPED: Final = "its output was dropped: Redis was at its maxmemory when the job ended"
