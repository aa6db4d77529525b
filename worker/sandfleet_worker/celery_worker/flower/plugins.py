"""Lets other distributions add pages to Flower: the entry points of the group `sandfleet.flower`.

The worker imports none of them itself; Flower runs without one that fails.
"""

from __future__ import annotations

import logging
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

log = logging.getLogger(__name__)

GROUP: Final = "sandfleet.flower"


def install_plugins(
    handlers: list[Any], settings: dict[str, Any], found: Iterable[EntryPoint] | None = None
) -> list[str]:
    """Call each plugin with Flower's routes and settings; return a sentence for each that failed.

    It may change both. What a failed one has changed by then is taken back.
    """
    faults: list[str] = []
    points = list(entry_points(group=GROUP) if found is None else found)
    for point in points:
        before_handlers, before_settings = list(handlers), dict(settings)
        try:
            point.load()(handlers, settings)
        except Exception as error:
            handlers[:] = before_handlers
            settings.clear()
            settings.update(before_settings)
            log.debug("%s failed", point.value, exc_info=True)
            faults.append(f"Flower runs without {point.name} ({point.value}): {error}")
    return faults if points else [f"Flower runs without pages: no package offers {GROUP}; sandfleet-web does"]
