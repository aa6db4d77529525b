"""Trim the halves of UTF-8 characters that a cap left at the ends of kept output."""

from __future__ import annotations

from typing import Final

UTF8_MAX_CONTINUATION: Final = 3
"""Bytes of one UTF-8 character that a cut can leave behind."""


def cut_to_characters(kept: bytes, *, is_cut_at_start: bool = False, is_cut_at_end: bool = False) -> bytes:
    """Trim the halves of UTF-8 characters that a cap left at the ends, so that cut text stays text.

    What is not UTF-8 without those halves is returned as it is.
    """
    start = _count_orphans(kept) if is_cut_at_start else 0
    end = len(kept) - (_count_unfinished(kept) if is_cut_at_end else 0)
    candidate = kept[start:end]
    try:
        candidate.decode()
    except UnicodeDecodeError:
        return kept
    return candidate


def _count_orphans(kept: bytes) -> int:
    """Return how many continuation bytes (10xxxxxx) stand at the start without their leading byte."""
    head = kept[:UTF8_MAX_CONTINUATION]
    return next((index for index, byte in enumerate(head) if not _is_continuation(byte)), len(head))


def _count_unfinished(kept: bytes) -> int:
    """Return how many bytes at the end begin a character that goes on after them."""
    for count in range(1, min(UTF8_MAX_CONTINUATION, len(kept)) + 1):
        byte = kept[-count]
        if not _is_continuation(byte):
            # A leading byte has as many ones at its top as its character has bytes.
            return count if (byte >> (7 - count)) == (1 << (count + 1)) - 1 else 0
    return 0


def _is_continuation(byte: int) -> bool:
    return byte >> 6 == 0b10  # noqa: PLR2004  the two top bits
