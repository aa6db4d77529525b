"""Pages of lists whose rows are in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

T = TypeVar("T")
ROWS: Final = 50


@dataclass(frozen=True)
class RowPage(Generic[T]):
    """The rows of one page, and which page of how many it is; the first is 1."""

    rows: Sequence[T]
    number: int
    pages: int
    total: int

    @property
    def first(self) -> int:
        """The place of its first row, from 1 on."""
        return (self.number - 1) * ROWS + 1 if self.total else 0

    @property
    def last(self) -> int:
        """The place of its last row."""
        return self.first + len(self.rows) - 1 if self.rows else 0


def cut_page(rows: Sequence[T], wanted: str) -> RowPage[T]:
    """Return the page whose number is `wanted`; the first or the last for a number that is none."""
    pages = max(1, -(-len(rows) // ROWS))
    number = min(max(1, int(wanted) if wanted.isdecimal() and len(wanted) < 6 else 1), pages)  # noqa: PLR2004
    return RowPage(rows[(number - 1) * ROWS : number * ROWS], number, pages, len(rows))
