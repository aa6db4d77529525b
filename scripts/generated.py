"""The generated part of a page: what stands between two markers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def replace_part(text: str, begin: str, end: str, part: str) -> str:
    """Return a page's text with `part` between the markers `begin` and `end`."""
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{part}\n{end}{tail}"


def print_or_write(page: Path, new_part: Callable[[], str], rewrite: Callable[[str], str]) -> None:
    """Print the part, or with ``--write`` put it into its page."""
    if "--write" in sys.argv[1:]:
        page.write_text(rewrite(page.read_text()))
    else:
        print(new_part())
