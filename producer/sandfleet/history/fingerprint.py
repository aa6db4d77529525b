"""The fingerprint of a failure: the same for failures of one kind."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Final

DIGITS: Final = 12
MAX_CACHED: Final = 4096
_STRUCK_OUT: Final = (
    (re.compile(r"\b(?:sha256:)?[0-9a-f]{8,}(?:-[0-9a-f]{4,}){0,4}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"(?<![\w.])(?:/[\w.@+-]+)+/?"), "<path>"),
    (re.compile(r"\d+(?:\.\d+)?"), "<n>"),
)


@lru_cache(maxsize=MAX_CACHED)
def find_fingerprint(code: str, message: str, exit_code: int | None = None, signal: int | None = None) -> str:
    """Return the fingerprint of a failure: code, exit code, signal, and what its message says.

    Ids, paths and numbers in the message do not count.
    """
    text = f"{code} {exit_code} {signal} {strike_out(message)}"
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:DIGITS]


def strike_out(message: str) -> str:
    """Return the message with ``<id>``, ``<path>`` and ``<n>`` for what differs from job to job."""
    for form, word in _STRUCK_OUT:
        message = form.sub(word, message)
    return message
