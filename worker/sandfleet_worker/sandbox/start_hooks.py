"""Hooks that the runner calls before a program starts: the job waits for something slow, or it starts now."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class StartHooks(Protocol):
    """Called in the job's thread."""

    def waiting(self, why: str) -> AbstractContextManager[None]:
        """Return a context in which the job waits for `why`, such as a boot slot.

        Leaving it may take time, and may raise.
        """
        ...

    def start(self) -> None:
        """The sandbox is up and the program starts next. Raise `SandboxError` to forbid it."""
        ...


class NoHooks:
    """Hooks that do nothing: every job may start at once."""

    def waiting(self, why: str) -> AbstractContextManager[None]:  # noqa: ARG002  nobody is told
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def start(self) -> None:
        """Allow the start."""
