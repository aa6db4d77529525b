"""Encode bytes for JSON: as text, or as base64 if they are not UTF-8, or shorter in base64."""

from __future__ import annotations

import base64
from typing import Final

SMALL_BYTES: Final = 1024
"""Up to this size UTF-8 stays text, readable in Redis, even if it is up to 5 KiB longer."""
CONTROL_GROWTH: Final = len("\\u0000") - 1
"""Bytes that JSON adds to a control character such as NUL or ESC.

It adds 1 to a quote, a backslash or a newline.
"""
GROWTH_SHARE: Final = 3
"""Base64 adds one byte to this many."""

_GROWS_BY_ONE: Final = b'"\\\b\f\n\r\t'
_GROWS: Final = bytes(range(0x20)) + b'"\\'


def encode_payload(raw: bytes) -> dict[str, str]:
    """Return ``{"data": ..., "encoding": "utf-8" | "base64"}`` of `raw`: the shorter in JSON."""
    if len(raw) <= SMALL_BYTES or not _is_shorter_as_base64(raw):
        try:
            return {"data": raw.decode(), "encoding": "utf-8"}
        except UnicodeDecodeError:
            pass  # not `suppress`, which takes longer than the rest
    return {"data": base64.b64encode(raw).decode("ascii"), "encoding": "base64"}


def _is_shorter_as_base64(raw: bytes) -> bool:
    allowed = len(raw) // GROWTH_SHARE
    # `translate` that only deletes is the fastest way to count. Each job's output passes here.
    growing = len(raw) - len(raw.translate(None, _GROWS))
    if growing * CONTROL_GROWTH <= allowed:
        return False
    by_one = len(raw) - len(raw.translate(None, _GROWS_BY_ONE))
    return by_one + (growing - by_one) * CONTROL_GROWTH > allowed
