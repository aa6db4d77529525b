"""The generated part of a page: what stands between two markers."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path


def replace_part(text: str, begin: str, end: str, part: str) -> str:
    """Return a page's text with `part` between the markers `begin` and `end`."""
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    return f"{head}{begin}\n{part}\n{end}{tail}"


def find_stale(wanted: Mapping[Path, str]) -> dict[Path, str]:
    """Return those of the `wanted` files that have another text, with the wanted one."""
    return {path: text for path, text in wanted.items() if not path.exists() or path.read_text() != text}


def print_or_write_stale(stale: Mapping[Path, str]) -> None:
    """Print the files' names, and with ``--write`` write the files."""
    for path, text in stale.items():
        print(path)
        if "--write" in sys.argv[1:]:
            path.write_text(text)


def print_or_write(page: Path, new_part: Callable[[], str], rewrite: Callable[[str], str]) -> None:
    """Print the part, or with ``--write`` put it into its page."""
    if "--write" in sys.argv[1:]:
        page.write_text(rewrite(page.read_text()))
    else:
        print(new_part())
