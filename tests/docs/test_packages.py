"""The diagram of the packages is that of the real imports."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def load() -> Any:
    """Return the script's module."""
    spec = importlib.util.spec_from_file_location("packages_page", ROOT / "scripts/packages_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_shows_the_imports_of_today() -> None:
    module = load()
    page = module.PAGE.read_text()
    assert module.rewrite(page) == page, "run: python scripts/packages_page.py --write"


def test_a_part_is_drawn_above_what_it_imports() -> None:
    rows = load().draw({"top": {"left", "right"}, "left": {"bottom"}, "right": set(), "bottom": set()})
    names = [" ".join(row.strip("│").split()) for row in rows if row.startswith("│")]
    assert names == ["top", "left", "bottom right"]


def test_a_circle_is_told() -> None:
    with pytest.raises(ValueError, match="a circle of imports among left, right"):
        load().draw({"left": {"right"}, "right": {"left"}, "bottom": set()})
