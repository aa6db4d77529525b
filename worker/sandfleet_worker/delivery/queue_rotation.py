"""The order in which a worker takes jobs from its queues: in rotation."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field

from sandfleet_config.queues import is_queue


@dataclass
class QueueRotation:
    """Queues in the order of the next claim. The queue of the last job goes to the end.

    Its own queue, and those that `patterns` name exactly, are always among them: of very many names
    the worker reads some at a time only.
    """

    own: str
    patterns: tuple[str, ...]
    _order: list[str] = field(default_factory=list)

    def update(self, names: list[str]) -> None:
        """Note the queues that exist: new ones come last, those that are gone are dropped."""
        exact = (pattern for pattern in self.patterns if is_queue(pattern))
        wanted = dict.fromkeys([self.own, *exact, *(name for name in names if self._matches(name))])
        kept = dict.fromkeys(name for name in self._order if name in wanted)
        self._order = [*kept, *(name for name in wanted if name not in kept)]

    def served(self, queue: str) -> None:
        """Move `queue` to the end: a job was taken from it."""
        if queue in self._order:
            self._order.remove(queue)
            self._order.append(queue)

    def names(self) -> list[str]:
        """Return the queues, the next one first."""
        return list(self._order)

    def _matches(self, name: str) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)
