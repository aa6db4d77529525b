"""Hooks that the runner calls before a program starts.

They tell that the job waits for something slow, or that it starts now. They also say which digest
an image's name means for the job.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
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


class OneStart:
    """The hooks of a job that may get a second sandbox, because the first one was lost.

    Its start is told once, and no wait after it: a job that has started is never one that waits.
    """

    def __init__(self, hooks: StartHooks) -> None:
        self._hooks, self._has_started = hooks, False

    def waiting(self, why: str, *, is_remote: bool = False) -> AbstractContextManager[None]:
        """Tell of the wait, unless the start was told."""
        return contextlib.nullcontext() if self._has_started else self._hooks.waiting(why, is_remote=is_remote)

    def start(self) -> None:
        """Tell of the start the first time; raise as the hook does."""
        if not self._has_started:
            self._has_started = True
            self._hooks.start()

    def find_digest(self, name: str) -> str:
        """Return the digest of the hooks."""
        return self._hooks.find_digest(name)

    def pin_digest(self, name: str, digest: str) -> str:
        """Record the digest by the hooks."""
        return self._hooks.pin_digest(name, digest)


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
