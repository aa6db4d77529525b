"""Bytes in JSON: as text, or as base64 where they are no UTF-8 or take less room so."""

from __future__ import annotations

import base64
from typing import Final

SMALL_BYTES: Final = 1024
"""So much stays text, readable where it is stored, even where base64 would be shorter: it grows by 5 KiB at worst."""
CONTROL_GROWTH: Final = len("\\u0000") - 1
"""Bytes that a control character such as NUL or ESC grows by in JSON; a quote, a backslash and a newline grow by 1."""
GROWTH_SHARE: Final = 3
"""Base64 is longer than the bytes that it encodes by one part in this many."""

_GROWS_BY_ONE: Final = b'"\\\b\f\n\r\t'
_GROWS: Final = bytes(range(0x20)) + b'"\\'


def encode_payload(raw: bytes) -> dict[str, str]:
    """Return `raw` as ``{"data": ..., "encoding": "utf-8" | "base64"}``, whichever is shorter in JSON."""
    if len(raw) <= SMALL_BYTES or not _is_shorter_as_base64(raw):
        try:
            return {"data": raw.decode(), "encoding": "utf-8"}
        except UnicodeDecodeError:
            pass  # not `suppress`: it would take longer than the rest
    return {"data": base64.b64encode(raw).decode("ascii"), "encoding": "base64"}


def _is_shorter_as_base64(raw: bytes) -> bool:
    allowed = len(raw) // GROWTH_SHARE
    # `translate` with nothing but deletions is the fastest way to count; each job's output goes through here.
    growing = len(raw) - len(raw.translate(None, _GROWS))
    if growing * CONTROL_GROWTH <= allowed:
        return False
    by_one = len(raw) - len(raw.translate(None, _GROWS_BY_ONE))
    return by_one + (growing - by_one) * CONTROL_GROWTH > allowed
