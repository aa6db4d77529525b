"""Whose turn it is among the queues."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field


@dataclass
class QueueRotation:
    """Whose turn it is: the queue served last goes to the end."""

    own: str
    patterns: tuple[str, ...]
    _order: list[str] = field(default_factory=list)

    def update(self, names: list[str]) -> None:
        """Take note of the queues there are."""
        wanted = dict.fromkeys([self.own, *(name for name in names if self._matches(name))])
        kept = dict.fromkeys(name for name in self._order if name in wanted)
        self._order = [*kept, *(name for name in wanted if name not in kept)]

    def served(self, queue: str) -> None:
        """Send `queue` to the end of the line."""
        if queue in self._order:
            self._order.remove(queue)
            self._order.append(queue)

    def names(self) -> list[str]:
        """Return the queues, first the one whose turn it is."""
        return list(self._order)

    def _matches(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)
