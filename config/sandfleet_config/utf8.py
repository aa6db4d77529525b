"""Cut incomplete UTF-8 characters off the ends of kept output."""

from __future__ import annotations

from typing import Final

UTF8_MAX_CONTINUATION: Final = 3
"""Most bytes of an incomplete UTF-8 character."""


def cut_to_characters(kept: bytes, *, is_cut_at_start: bool = False, is_cut_at_end: bool = False) -> bytes:
    """Cut incomplete UTF-8 characters off the cut ends of `kept`, so that text stays text.

    Bytes that are not UTF-8 even then are returned unchanged.
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
    """Count the continuation bytes (10xxxxxx) at the start, whose leading byte is missing."""
    head = kept[:UTF8_MAX_CONTINUATION]
    return next((index for index, byte in enumerate(head) if not _is_continuation(byte)), len(head))


def _count_unfinished(kept: bytes) -> int:
    """Count the bytes at the end that begin a character without its last bytes."""
    for count in range(1, min(UTF8_MAX_CONTINUATION, len(kept)) + 1):
        byte = kept[-count]
        if not _is_continuation(byte):
            # The leading ones of a leading byte count the bytes of its character.
            return count if (byte >> (7 - count)) == (1 << (count + 1)) - 1 else 0
    return 0


def _is_continuation(byte: int) -> bool:
    return byte >> 6 == 0b10  # noqa: PLR2004  the two top bits
