"""Hooks of a job on its way to its start: the runner tells that the job waits for something slow, and that it starts now."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


class StartHooks(Protocol):
    """Hears of a job's way to its start, in the job's thread."""

    def waiting(self, why: str) -> AbstractContextManager[None]:
        """Wait in this context for something slow, such as ``a boot turn``. Leaving it may take time, too, and may raise."""
        ...

    def start(self) -> None:
        """Hear that the sandbox is up and the program starts next; raise `SandboxError` to forbid it."""
        ...


class NoHooks:
    """Lets everything start at once."""

    def waiting(self, why: str) -> AbstractContextManager[None]:  # noqa: ARG002  nobody is told
        """Wait."""
        return contextlib.nullcontext()

    def start(self) -> None:
        """Allow it."""
