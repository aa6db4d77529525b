"""The seed's interfaces: what the backend asks of a runner, a health check, an image resolver and a log."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pydantic import Field
from sandfleet_config.outcome import Outcome, SandboxResult

if TYPE_CHECKING:
    from sandfleet_config.spec import SandboxSpec


class SandboxRunner(Protocol):
    """Runs a spec in a sandbox. Safe for concurrent use; never changes the spec."""

    def run(self, spec: SandboxSpec, *, deadline: float | None = None, cancel: Any = None) -> SandboxResult:
        """Run `spec`; a non-zero exit is returned, every other code raised as its `SandboxError`.

        `deadline` is a ``time.monotonic`` instant, `cancel` a `CancelSignal`; both end the job early.
        """
        ...


class HealthChecker(Protocol):
    """Tells whether sandboxes can be run at all."""

    def ping(self) -> None:
        """Return if they can, raise if not."""
        ...


class ImageResolver(Protocol):
    """Turns an image's name into the one to run, pulling it if need be."""

    def resolve(self, image: str) -> str:
        """Return the name or digest to run."""
        ...


class Logger(Protocol):
    """Takes the backend's events, with %-style arguments. It should not raise; if it does, nobody hears of it."""

    def info(self, msg: str, *args: object) -> None:
        """Tell of normal work."""
        ...

    def warning(self, msg: str, *args: object) -> None:
        """Tell of what may go wrong."""
        ...

    def error(self, msg: str, *args: object) -> None:
        """Tell of what went wrong."""
        ...


class RunResult(SandboxResult):
    """A `SandboxResult` that brings the whole outcome along; runners need not."""

    outcome: Outcome = Field(repr=False)
