"""A command with placeholders such as ``{seed}``, filled in for each job. No shell reads it."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from sandfleet.cli.ways.entry import Fault, InputInvalid

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

NEARNESS: Final = 0.6
"""The least similarity of two names (`difflib`, 0 to 1) at which one is suggested for the other."""
SHOWN_NAMES: Final = 20
_PART: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_BRACES: Final = {"{{": "{", "}}": "}"}
_PARALLEL: Final = {".": "stem", "/": "name", "/.": "stem", "#": "index"}
"""Replacement strings of GNU parallel, and the names that stand for them here."""


class Template:
    """The words of a command, or of another text, with placeholders.

    ``{name}`` stands for the value of that name, ``{}`` for `whole`; ``{{`` and ``}}`` are braces.
    """

    def __init__(
        self, words: Sequence[str], names: Collection[str], *, whole: str = "", what: str = "argument"
    ) -> None:
        """Read the placeholders of `words`; `names` are all that a job has values for.

        Raises:
            InputInvalid: a brace stands alone, or there is no such name; tells every fault.
        """
        self._names = names
        self._whole = whole
        self._faults: list[Fault] = []
        self._used: set[str] = set()
        self._fillers = [self._read(word, f"{what} {number}") for number, word in enumerate(words, 1)]
        if self._faults:
            raise InputInvalid(*self._faults)

    @property
    def used(self) -> frozenset[str]:
        """The names that the words use."""
        return frozenset(self._used)

    def fill(self, values: Mapping[str, str]) -> list[str]:
        """Return the words with the values of one job."""
        return [word if isinstance(word, str) else word(values) for word in self._fillers]

    def _read(self, word: str, place: str) -> str | Callable[[Mapping[str, str]], str]:
        """Return the word itself, or what fills it."""
        pieces: list[_Piece] = []
        at = 0
        for found in _PART.finditer(word):
            text, name = found[0], found[1]
            pieces.append(_Piece(word[at : found.start()]))
            at = found.end()
            if text in _BRACES:
                pieces.append(_Piece(_BRACES[text]))
            elif name is None:
                said = f"a single {text} at character {found.start() + 1}: write {text * 2} for a brace"
                self._faults.append(Fault(place, said))
            elif (known := name or self._whole) in self._names and known:
                pieces.append(_Piece(known, is_name=True))
                self._used.add(known)
            else:
                self._faults.append(Fault(place, self._describe_unknown(text, name)))
        pieces.append(_Piece(word[at:]))
        if not any(piece.is_name for piece in pieces):
            return "".join(piece.text for piece in pieces)
        kept = tuple(piece for piece in pieces if piece.text)
        return lambda values: "".join(values[text] if is_name else text for text, is_name in kept)

    def _describe_unknown(self, text: str, name: str) -> str:
        if not name:
            return f"{text} has no meaning here: {self._list()}"
        meant = [_PARALLEL[name]] if _PARALLEL.get(name) in self._names else suggest(name, self._names)
        hint = f"did you mean {{{meant[0]}}}? " if meant else ""
        return f"there is no {text}: {hint}{self._list()}; write {{{{ and }}}} for braces"

    def _list(self) -> str:
        shown = ", ".join(f"{{{name}}}" for name in list(self._names)[:SHOWN_NAMES])
        more = ", ..." if len(self._names) > SHOWN_NAMES else ""
        return f"the placeholders are {shown}{more}"


class _Piece(NamedTuple):
    text: str
    is_name: bool = False


def suggest(name: str, names: Collection[str]) -> list[str]:
    """Return the one of `names` that was probably meant, or nothing."""
    folded = {known.casefold().strip(): known for known in names}
    return [folded[near] for near in difflib.get_close_matches(name.casefold().strip(), folded, n=1, cutoff=NEARNESS)]
