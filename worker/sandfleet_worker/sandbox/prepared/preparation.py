"""One preparation: what an interpreter imports before its job comes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple


@dataclass(frozen=True)
class Preparation:
    """A start of the interpreter ahead of the job, with the modules that it imports."""

    name: str
    """The name that jobs ask for; empty for the bare interpreter."""
    modules: tuple[str, ...]
    """Imported ahead, in this order."""
    revision: str = ""
    """When the operator prepared it. Prepared again, it is another one, without failures and spares."""

    def __str__(self) -> str:
        """Return it for messages: ``sci (numpy, pandas)``."""
        return f"{self.name or 'python'} ({', '.join(self.modules) or 'no imports'})"


BARE: Final = Preparation("", ())
"""The interpreter without imports."""


class Tried(NamedTuple):
    """A preparation that was tried once and works."""

    seconds: float
    """From the start of the interpreter to the end of its imports."""
    memory_bytes: int
    """Memory of the whole spare then; 0 if the host does not count it."""
