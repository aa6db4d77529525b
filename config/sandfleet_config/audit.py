"""The fields of a line of the audit, as whoever acts writes it: the producer, the pages, Flower."""

from __future__ import annotations

from typing import Final

MAX_ENTRIES: Final = 10_000
"""About as many of the newest are kept."""
TTL_SECONDS: Final = 365 * 86400
MAX_TEXT: Final = 500
"""Longest text of a field in characters; a longer one is cut."""


def list_audit_args(fields: dict[str, str]) -> list[str | int]:
    """Return the arguments of ``add_audit.lua`` after the prefix.

    The fields are by, role, via, action, target, count, reason and result.
    """
    words = [word for name, value in fields.items() for word in (name, value[:MAX_TEXT])]
    return [MAX_ENTRIES, TTL_SECONDS, *words]
