"""The read-only API: the same as the command line's ``-o json``."""

from __future__ import annotations

from typing import Any, Final

from sandfleet_web.pages.handler import JsonHandler

API_ROUTES: Final[tuple[tuple[str, type[JsonHandler]], ...]] = ()
"""Filled by the issue's next step."""
_: Any = None
