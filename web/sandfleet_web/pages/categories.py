"""Whose doing an end was, by its code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.codes import Category, read_code

if TYPE_CHECKING:
    from collections.abc import Mapping


def find_category(code: str) -> str:
    """Return the category of a code; one that this release does not know counts as the host's."""
    try:
        return read_code(code).category.value
    except ValueError:
        return Category.HOST.value


def count_categories(codes: Mapping[str, int]) -> dict[str, int]:
    """Return counts by category from counts by code."""
    found: dict[str, int] = {}
    for code, number in codes.items():
        name = find_category(code)
        found[name] = found.get(name, 0) + number
    return found
