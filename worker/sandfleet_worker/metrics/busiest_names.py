"""The few names that get series of their own; the rest of them counts as ``other``.

A series may only grow, so what was counted as ``other`` stays there: a name that becomes busy begins
a series at 0, and the one that it replaces ends. Sums over all series are right at any time.
"""

from __future__ import annotations

from typing import Final

from sandfleet_config.metric_names import OTHER

MAX_WATCHED: Final = 1000
"""Names without series whose use is counted."""
MAX_NAME_CHARS: Final = 120


class BusiestNames:
    """Chooses up to `limit` names by how often they are used. The caller holds a lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._named: dict[str, int] = {}
        self._watched: dict[str, int] = {}

    def find(self, name: str) -> str:
        """Note a use of `name`, and return the label that it counts for."""
        named, name = self._named, name[:MAX_NAME_CHARS]
        if name in named or len(named) < self._limit:
            named[name] = named.get(name, 0) + 1
            return name
        watched = self._watched
        if name in watched or len(watched) < MAX_WATCHED:
            watched[name] = watched.get(name, 0) + 1
        return OTHER

    def review(self) -> list[str]:
        """Let names that are used more than twice as often take the places of others.

        Return the names that lost theirs. Only uses since the last review count.
        """
        lost: list[str] = []
        rising = sorted(self._watched.items(), key=lambda item: item[1], reverse=True)
        idle = sorted(self._named.items(), key=lambda item: item[1])
        for (new, uses), (old, old_uses) in zip(rising, idle, strict=False):
            if uses <= 2 * old_uses:
                break
            del self._named[old]
            self._named[new] = 0
            lost.append(old)
        self._named = dict.fromkeys(self._named, 0)
        self._watched = {}
        return lost
