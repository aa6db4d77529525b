"""The fingerprint of a failure: the same for failures of one kind, in logs, pages and history."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Final

OK: Final = "OK"
DIGITS: Final = 12
MAX_CHARS: Final = 500
"""Characters of a message that count."""
_NUMBERED: Final = frozenset(("EXIT_NONZERO", "SIGNALED"))
_PATH: Final = re.compile(r"(?<![\w/])/[^\s'\",;:()]*+")
_ID: Final = re.compile(r"(?<![A-Za-z0-9])(?=[0-9A-Fa-f-]*[0-9])[0-9A-Fa-f]{8}[0-9A-Fa-f-]*+(?![A-Za-z0-9])")
_NUMBER: Final = re.compile(r"\d++(?:\.\d++)?")


def fingerprint_failure(code: str, message: str) -> str:
    """Return 12 hex digits of the code and the message without numbers, ids and paths.

    Empty for ``OK``. The number of an exit code or a signal is the kind itself, and counts.
    """
    return "" if code == OK else _fingerprint(code, message[:MAX_CHARS])


@lru_cache(maxsize=256)
def _fingerprint(code: str, message: str) -> str:
    kind = message if code in _NUMBERED else generalize(message)
    return hashlib.sha256(f"{code} {kind}".encode("utf-8", "replace")).hexdigest()[:DIGITS]


def generalize(message: str) -> str:
    """Return the message with ``/...`` for paths, ``ID`` for ids and ``N`` for numbers."""
    text = _PATH.sub("/...", message[:MAX_CHARS])
    return _NUMBER.sub("N", _ID.sub("ID", text))
