"""Compare a program's output with the answer of a case, as judges of contests do. Pure: no I/O."""

from __future__ import annotations

from itertools import zip_longest
from typing import Final

from sandfleet_config.terminal import safe_text

SHOWN_CHARS: Final = 40
"""Of a line in a message."""


def find_difference(output: bytes, answer: bytes, *, is_exact: bool = False) -> str:
    """Return how `output` differs from `answer`, in one line; empty if it is accepted.

    White space at the end of a line, and empty lines at the end, do not count; with `is_exact` each
    byte does.
    """
    if output == answer:
        return ""
    if is_exact:
        return _describe_bytes(output, answer)
    pairs = zip_longest(_split(output), _split(answer))
    for number, (found, wanted) in enumerate(pairs, 1):
        if found != wanted:
            return f"line {number}: expected {_show(wanted)}, got {_show(found)}"
    return ""


def _split(text: bytes) -> list[bytes]:
    lines = [line.rstrip() for line in text.rstrip().split(b"\n")]
    return lines if lines != [b""] else []


def _show(line: bytes | None) -> str:
    if line is None:
        return "the end"
    text = line.decode(errors="replace")
    return f'"{safe_text(text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "...")}"'


def _describe_bytes(output: bytes, answer: bytes) -> str:
    same = next(
        (at for at, (found, wanted) in enumerate(zip(output, answer, strict=False)) if found != wanted),
        min(len(output), len(answer)),
    )
    line = answer.count(b"\n", 0, same) + 1
    return f"byte {same + 1} (line {line}): {len(answer)} bytes are expected, got {len(output)}"
