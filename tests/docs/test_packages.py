"""The diagram of the packages is that of the real imports."""

from __future__ import annotations

from pathlib import Path

import packages_page
import pytest

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_imports_of_today() -> None:
    page = packages_page.PAGE.read_text()
    assert packages_page.rewrite(page) == page, "run: python scripts/packages_page.py --write"


def test_a_part_is_drawn_above_what_it_imports() -> None:
    rows = packages_page.draw({"top": {"left", "right"}, "left": {"bottom"}, "right": set(), "bottom": set()})
    names = [" ".join(row.strip("│").split()) for row in rows if row.startswith("│")]
    assert names == ["top", "left", "bottom right"]


def test_a_circle_is_told() -> None:
    with pytest.raises(ValueError, match="a circle of imports among left, right"):
        packages_page.draw({"left": {"right"}, "right": {"left"}, "bottom": set()})
