"""Escape control characters of untrusted text before it is printed on a terminal."""

from __future__ import annotations

import sys
from typing import Final

KEPT_CONTROLS: Final = "\n\t"
END_LINES: Final = 10
END_CHARS: Final = 2000


def safe_text(text: str) -> str:
    r"""Return `text` with control characters (escapes, C1, bidirectional overrides) as ``\x1b``."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() or char in KEPT_CONTROLS else char.encode("unicode_escape").decode() for char in text
    )


def write_line(text: str) -> None:
    """Write a line to stderr in one call of the system.

    `print` makes two there (Python's stderr keeps nothing back), and a line of another thread or
    process can come between the text and its end.
    """
    if sys.stderr is not None:  # None after `2>&-`
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


def cut_to_end(text: str) -> str:
    """Return the last 10 lines of `text`, at most 2000 characters; ``...`` stands for the rest."""
    end = text.rstrip("\n")[-END_CHARS:]
    end = "\n".join(end.split("\n")[-END_LINES:])
    return end if len(end) == len(text.rstrip("\n")) else f"...{end}" if "\n" not in end else f"...\n{end}"
