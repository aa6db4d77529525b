"""Hooks that the runner calls before a program starts.

They tell that the job waits for something slow, or that it starts now. They also say which digest
an image's name means for the job.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


class StartHooks(Protocol):
    """Called in the job's thread."""

    def waiting(self, why: str, *, is_remote: bool = False) -> AbstractContextManager[None]:
        """Return a context in which the job waits for `why`, such as a boot slot.

        `is_remote`: for something outside this host. The job then holds nothing that other jobs
        wait for. Leaving the context may take time, and may raise.
        """
        ...

    def start(self) -> None:
        """The sandbox is up and the program starts next. Raise `SandboxError` to forbid it."""
        ...

    def find_digest(self, name: str) -> str:
        """Return the recorded digest of the image's `name` for this job; empty if there is none."""
        ...

    def pin_digest(self, name: str, digest: str) -> str:
        """Record that `name` means `digest`; return the digest in force, maybe an earlier one."""
        ...


def call_once(function: Callable[[], None]) -> Callable[[], None]:
    """Return a function that calls `function` the first time, and does nothing afterwards."""
    left = [function]

    def call() -> None:
        if left:
            left.pop()()

    return call


class NoHooks:
    """Hooks that do nothing: every job may start at once."""

    def waiting(self, why: str, *, is_remote: bool = False) -> AbstractContextManager[None]:  # noqa: ARG002  nobody is told
        """Return a context that does nothing."""
        return contextlib.nullcontext()

    def start(self) -> None:
        """Allow the start."""

    def find_digest(self, name: str) -> str:  # noqa: ARG002  nothing is recorded
        """Return nothing: a name means what it means on this host."""
        return ""

    def pin_digest(self, name: str, digest: str) -> str:  # noqa: ARG002  likewise
        """Return the digest."""
        return digest
