"""The output of one running job on its way to Redis: bounded, and never waited for."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from sandfleet_config.live import CHUNKS_A_SECOND, MAX_CHUNK_BYTES, STREAMS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.delivery.claim import Claim

CHUNK_SECONDS: Final = 1 / (CHUNKS_A_SECOND - len(STREAMS) - 1)
"""Least time from chunk to chunk. It leaves the last chunks of both streams free to go at once."""
RENEW_SECONDS: Final = 240.0
"""How often the TTL of a silent job's stream is renewed."""
END_SECONDS: Final = 0.5
"""How long the end of a job waits at most for its last chunks to be sent."""


class Chunk(NamedTuple):
    """Output of one stream, and the offset of its first byte."""

    stream: str
    offset: int
    data: bytes


class _Pending:
    """The newest bytes of one stream that were not sent yet, at most a chunk of them."""

    def __init__(self, stream: str) -> None:
        self._stream = stream
        self._data = bytearray()
        self._end = 0
        """The offset behind the last byte."""

    def __len__(self) -> int:
        return len(self._data)

    def add(self, data: bytes) -> None:
        self._end += len(data)
        if len(data) >= MAX_CHUNK_BYTES:
            self._data[:] = data[-MAX_CHUNK_BYTES:]
            return
        self._data += data
        if len(self._data) > MAX_CHUNK_BYTES:
            del self._data[:-MAX_CHUNK_BYTES]

    def take(self) -> Chunk:
        data = bytes(self._data)
        self._data.clear()
        return Chunk(self._stream, self._end - len(data), data)


class LiveOutput:
    """Takes the output of one job in the job's thread; another thread sends it.

    Holds at most a chunk of each stream: of what comes faster than it is sent, the newest. `claim`
    returns the job's claim as it is now. `wake` tells the sender that there is something to send.
    """

    def __init__(self, claim: Callable[[], Claim], wake: Callable[[], None]) -> None:
        self._claim, self._wake = claim, wake
        self._lock = threading.Lock()
        self._streams = {name: _Pending(name) for name in STREAMS}
        self._next = time.monotonic()
        self._renewal = self._next + RENEW_SECONDS
        self._is_pending = self._is_ending = self._is_fenced = False
        self._is_sent = threading.Event()

    @property
    def claim(self) -> Claim:
        """The claim of the job, with the attempt whose output this is."""
        return self._claim()

    def keep(self, name: str) -> Callable[[bytes], None]:
        """Return the function that takes the output of one stream: see `Transfer.keep_output`."""
        return partial(self._add, self._streams[name])

    def _add(self, pending: _Pending, data: bytes) -> None:
        with self._lock:
            pending.add(data)
            if self._is_pending or self._is_fenced:
                return
            self._is_pending = True
        self._wake()

    @property
    def due(self) -> float:
        """When to send it next, as `time.monotonic`."""
        if self._is_ending:
            return 0.0
        return self._next if self._is_pending else self._renewal

    def take(self) -> list[Chunk]:
        """Return the chunks to send now; none: renew the TTL."""
        with self._lock:
            chunks = [pending.take() for pending in self._streams.values() if pending]
            self._is_pending = False
        now = time.monotonic()
        self._next, self._renewal = now + len(chunks) * CHUNK_SECONDS, now + RENEW_SECONDS
        return chunks

    def fence(self) -> None:
        """Send nothing more: another worker has the job."""
        self._is_fenced = True

    @property
    def is_fenced(self) -> bool:
        """Whether nothing is sent any more."""
        return self._is_fenced

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be sent once what was taken is sent."""
        return self._is_fenced or self._is_ending

    def note_over(self) -> None:
        """Note that nothing more is sent: the job's end need not wait."""
        self._is_sent.set()

    def end(self) -> None:
        """Send what is left; wait for that, but not long. What is too late is skipped."""
        self._is_ending = True
        self._wake()
        self._is_sent.wait(END_SECONDS)
        self._is_fenced = True
