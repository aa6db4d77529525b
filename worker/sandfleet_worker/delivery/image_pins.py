"""Remembers for a moment which digest an image's name means for a batch.

So not each of its jobs asks Redis.
"""

from __future__ import annotations

import threading
import time

KNOWN_SECONDS = 30.0
"""A batch name may be used again once its keys have expired; then the record in Redis is new."""
MAX_KNOWN = 1000


class ImagePins:
    """The digests that Redis has told; safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str], tuple[str, float]] = {}

    def find(self, batch: str, name: str) -> str:
        """Return the digest that Redis has told within `KNOWN_SECONDS`, or nothing."""
        with self._lock:
            digest, told = self._known.get((batch, name), ("", 0.0))
        return digest if time.monotonic() - told < KNOWN_SECONDS else ""

    def note(self, batch: str, name: str, digest: str) -> None:
        """Remember what Redis has told."""
        with self._lock:
            self._known.pop((batch, name), None)
            while len(self._known) >= MAX_KNOWN:
                del self._known[next(iter(self._known))]
            self._known[batch, name] = digest, time.monotonic()
