"""Keep the head, the tail or both of an endless stream in bounded memory, and count all of it.

Pure: no I/O.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from sandfleet_config.outcome import StreamOutput
from sandfleet_config.utf8 import cut_to_characters


class Capture:
    """Keeps at most `max_bytes` of one stream, however much arrives."""

    def __init__(self, max_bytes: int, keep: Literal["head", "tail", "both"]) -> None:
        self._head_limit = {"head": max_bytes, "tail": 0, "both": max_bytes - max_bytes // 2}[keep]
        self._tail_limit = max_bytes - self._head_limit
        self._head = bytearray()
        self._tail = bytearray()
        self.total_bytes = 0
        self.max_bytes = max_bytes

    @property
    def is_over(self) -> bool:
        """Whether more arrived than is kept."""
        return self.total_bytes > self.max_bytes

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes of the stream."""
        self.total_bytes += len(chunk)
        free = self._head_limit - len(self._head)
        if free > 0:
            self._head += chunk[:free]
            chunk = chunk[free:]
        if self._tail_limit and chunk:
            self._tail += chunk[-self._tail_limit :]
            # Trim only at twice the limit: so each byte is moved once on average, however small the
            # chunks are.
            if len(self._tail) >= 2 * self._tail_limit:
                del self._tail[: -self._tail_limit]

    def to_output(self) -> StreamOutput:
        """Return the kept bytes.

        Cut text ends at a whole character. With ``both``, a line says how much is missing.
        """
        head = bytes(self._head)
        tail = bytes(self._tail[-self._tail_limit :]) if self._tail_limit else b""
        if not self.is_over:
            return StreamOutput.of(head + tail, self.total_bytes)
        head = cut_to_characters(head, is_cut_at_end=True)
        tail = cut_to_characters(tail, is_cut_at_start=True)
        if head and tail:
            head += b"\n... %d bytes omitted ...\n" % (self.total_bytes - len(head) - len(tail))
        return replace(StreamOutput.of(head + tail, self.total_bytes), truncated=True)
