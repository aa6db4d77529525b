"""Live output: what the program of a running job writes, in a bounded stream in Redis.

A job gets one if its spec says `output.live`. Both sides take its bounds and the form of its
entries from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from sandfleet_config.queues import KEY_PREFIX

MAX_LIVE_BYTES: Final = 1 << 20
"""Output of one job in Redis, `ENTRY_BYTES` for each chunk included; the oldest goes first."""
MAX_ALL_LIVE_BYTES: Final = 64 << 20
"""The same of all jobs together; the stream that nobody wrote to for longest goes first."""
ENTRY_BYTES: Final = 64
"""Bytes that an entry counts for, beside its output."""
MAX_CHUNK_BYTES: Final = 32 << 10
CHUNKS_A_SECOND: Final = 10
"""Most chunks of one job, both streams together."""
LIVE_TTL_SECONDS: Final = 600
"""How long a stream stays after the last write, and so after the end of its job or its worker."""
STREAMS: Final = ("stdout", "stderr")


class LiveEntry(NamedTuple):
    """One chunk of a stream: `offset` is that of its first byte in the attempt's output."""

    stream: str
    attempt: int
    run: int
    offset: int
    data: bytes


def live_key(job_id: str) -> str:
    """Return the key of the stream with a job's live output."""
    return f"{KEY_PREFIX}live:{job_id}"


def live_batch_key(name: str) -> str:
    """Return the key of a batch's index: the jobs with live output, by the end of its TTL (ms)."""
    return f"{KEY_PREFIX}live_batch:{name}"


def parse_live_entry(fields: Mapping[bytes, bytes]) -> LiveEntry | None:
    """Parse an entry; None for one that no worker of this contract writes."""
    try:
        attempt, run, offset = (int(fields[name]) for name in (b"attempt", b"run", b"offset"))
        stream, data = fields[b"stream"].decode(), fields[b"data"]
    except (KeyError, ValueError):
        return None
    return LiveEntry(stream, attempt, run, offset, data) if stream in STREAMS and offset >= 0 else None
