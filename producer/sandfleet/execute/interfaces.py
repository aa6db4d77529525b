"""Interfaces that a `Backend` uses: runner, health check, image resolver, logger."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from pydantic import Field
from sandfleet_config.outcome import Outcome, SandboxResult

if TYPE_CHECKING:
    from sandfleet_config.spec import SandboxSpec


class SandboxRunner(Protocol):
    """Runs a spec in a sandbox. Safe for concurrent use; never changes the spec."""

    def run(self, spec: SandboxSpec, *, deadline: float | None = None, cancel: Any = None) -> SandboxResult:
        """Run `spec`; a non-zero exit is returned, every other code raised as its `SandboxError`.

        `deadline` is a ``time.monotonic`` instant, `cancel` a `CancelSignal`; both end the job
        early.
        """
        ...


@runtime_checkable
class AsyncSandboxRunner(Protocol):
    """Runs a spec in a sandbox without blocking the event loop; raises as `SandboxRunner.run`."""

    async def run_async(self, spec: SandboxSpec, *, deadline: float | None = None) -> SandboxResult:
        """Run `spec`."""
        ...


async def run_async(runner: SandboxRunner, spec: SandboxSpec, deadline: float | None) -> SandboxResult:
    """Run `spec` without blocking the event loop; a runner without `run_async` in another thread."""
    if isinstance(runner, AsyncSandboxRunner):
        return await runner.run_async(spec, deadline=deadline)
    return await asyncio.to_thread(runner.run, spec, deadline=deadline)


class HealthChecker(Protocol):
    """Checks whether sandboxes can be run."""

    def ping(self) -> None:
        """Return if they can; raise an error if not."""
        ...


class ImageResolver(Protocol):
    """Resolves an image's name, and pulls the image if necessary."""

    def resolve(self, image: str) -> str:
        """Return the name or digest to run."""
        ...


class Logger(Protocol):
    """Logs the backend's events, with %-style arguments. Errors that it raises are ignored."""

    def info(self, msg: str, *args: object) -> None:
        """Log a step."""
        ...

    def warning(self, msg: str, *args: object) -> None:
        """Log a warning."""
        ...

    def error(self, msg: str, *args: object) -> None:
        """Log an error."""
        ...


class RunResult(SandboxResult):
    """A `SandboxResult` with the whole outcome; a runner may return a plain `SandboxResult`."""

    outcome: Outcome = Field(repr=False)
