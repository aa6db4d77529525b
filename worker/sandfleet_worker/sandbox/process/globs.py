"""Match paths against patterns, in linear time whatever a pattern looks like. Pure: no I/O.

`*`, `?` and `[...]` match within one name, also a name that begins with a dot. `**` as a whole name
matches any number of folders, also none; at a pattern's end it matches everything below.
"""

from __future__ import annotations

import fnmatch
import re
from typing import Final

MAGIC: Final = re.compile(r"[*?[]")


def _translate(name: str) -> str:
    """Return the regular expression of one name.

    `fnmatch.translate` looks for the end of each ``[`` up to the end of the name: that is quadratic
    where there is none.
    """
    closed = name.rfind("]") + 1
    # No pattern has a zero byte: it stands for a bracket that nothing closes.
    return fnmatch.translate(name[:closed] + name[closed:].replace("[", "\0")).replace("\0", r"\[")


class Glob:
    """One pattern, relative to a folder."""

    def __init__(self, pattern: str) -> None:
        """Compile `pattern`; a slash at its end stands for everything below.

        Raises:
            ValueError: it has a part ``..`` or a zero byte.
        """
        if ".." in pattern.split("/") or "\0" in pattern:
            raise ValueError("a pattern must have neither .. nor a zero byte")
        parts = [part for part in pattern.split("/") if part not in {"", "."}]
        if pattern.endswith("/") or parts[-1:] == ["**"]:
            parts = [*(parts if pattern.endswith("/") else parts[:-1]), "**", "*"]
        self.pattern = pattern
        # One `**` after another matches what the first matches.
        self._names = [part for at, part in enumerate(parts) if part != "**" or parts[at - 1 : at] != ["**"]]
        # `translate` makes each star atomic, so that no name takes more than its length times the
        # pattern's.
        self._matchers = [None if name == "**" else re.compile(_translate(name)) for name in self._names]

    @property
    def folder(self) -> str:
        """The folder of all matches, without wildcards: ``out/a`` of ``out/a/*.png``."""
        fixed: list[str] = []
        for name in self._names[:-1]:
            if MAGIC.search(name):
                break
            fixed.append(name)
        return "/".join(fixed)

    @property
    def depth(self) -> int | None:
        """How many folders below `folder` a match can be: 1 if right in it, None if any number."""
        if "**" in self._names:
            return None
        return len(self._names) - (self.folder.count("/") + 1 if self.folder else 0)

    def matches(self, path: str) -> bool:
        """Whether a relative path matches the whole pattern."""
        # All places in the pattern where the names up to here may have led: no way is tried twice.
        at = self._skip({0})
        for name in path.split("/"):
            reached: set[int] = set()
            for place in at:
                if place == len(self._matchers):
                    continue
                matcher = self._matchers[place]
                if matcher is None:
                    reached.add(place)
                elif matcher.match(name):
                    reached.add(place + 1)
            at = self._skip(reached)
            if not at:
                return False
        return len(self._matchers) in at

    def _skip(self, places: set[int]) -> set[int]:
        """Add the places behind each `**`, which may match nothing."""
        last = len(self._matchers)
        return places | {place + 1 for place in places if place < last and self._matchers[place] is None}
